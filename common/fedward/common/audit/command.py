"""`log verify`, the same for a hospital and for the coordinator; each adds it to its own group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward.common.audit.chain import Head
from fedward.common.audit.verify import Report, verify_log
from fedward.common.commands import AsJson, print_json
from fedward.common.errors import IdentityError, StateError
from fedward.common.files import read_bytes
from fedward.common.identity.certificates import read_certificate
from fedward.common.identity.keys import PublicKey

CertificateFile = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        metavar="FILE",
        help="Whose log it is, if not this folder's: a certificate or a public key.",
    ),
]
Expected = Annotated[
    str | None,
    typer.Option(
        "--expected",
        metavar="LENGTH:HASH",
        help="An end of this log that the other side kept: shows whether entries are missing "
        "after the last one, or others took their place.",
    ),
]


def verify(
    log: Path,
    own: PublicKey | None,
    certificate: Path | None,
    expected: str | None,
    as_json: AsJson,
) -> None:
    """Verify a log, say what was found, and fail if anything is wrong.

    Raises:
        IdentityError: something is wrong with the log.
        StateError: the log, or what is expected of it, cannot be read.
    """
    key = own if certificate is None else _read_key(certificate)
    if key is None:
        raise IdentityError("it is not known whose log this is", hint="give --certificate")
    head = None if expected is None else _read_head(expected)
    report = verify_log(log, key, expected=head)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(_describe(report, witnessed=head is not None))
    if not report.ok:
        raise IdentityError(
            "the audit log is not what it was",
            hint="keep it as evidence; compare it with a backup and with the other side",
        )


def _read_key(path: Path) -> PublicKey:
    data = read_bytes(path, error=IdentityError)
    if b"-----BEGIN PUBLIC KEY-----" in data:
        return PublicKey.from_pem(data)
    return read_certificate(data).public_key


def _read_head(text: str) -> Head:
    length, _, digest = text.partition(":")
    if not length.isdigit():
        raise StateError("this is not the end of a log", hint="write it as LENGTH:HASH")
    return Head.read({"length": int(length), "hash": digest.lower()})


def _describe(report: Report, *, witnessed: bool) -> str:
    lines = [f"entries: {report.head.length}"]
    if report.head.length:
        lines += [f"from {report.first} to {report.last}", f"end: {_head(report.head)}"]
    lines += (
        [f"problem: {report.problem}"] if report.problem else ["every entry is as it was signed"]
    )
    if report.ok and not witnessed:
        lines.append("whether entries are missing after the last one, only --expected can tell")
    return "\n".join(lines)


def _head(head: Head) -> str:
    return f"{head.length}:{head.hash}"
