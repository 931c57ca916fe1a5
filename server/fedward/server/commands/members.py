"""`fedward server init, enroll, revoke, rotate, roster`: who is a member of the consortium."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedward.common.commands import (
    AsJson,
    PassphraseFile,
    confirm_fingerprint,
    new_app,
    passphrase_from,
    print_json,
)
from fedward.common.errors import IdentityError, OutputError
from fedward.common.exit_codes import exit_codes_help
from fedward.server.commands.arguments import CODES, Folder

if TYPE_CHECKING:
    from fedward.common.identity import Roster

app = new_app()


@app.command(
    "init",
    short_help="Found a consortium: make its folder, keys, certificates and roster.",
    help="""Found a consortium: make its folder, keys, certificates and roster.

Makes a root, an issuer under it, and a key and certificate for the server. The root's key,
ca/root.key, is needed again only for a new issuer: move it to a place that is not connected to a
network. Give a passphrase to have all key files encrypted.

Hospitals compare the fingerprint of the root, which is printed, when they install their
certificate: be ready to read it out on the telephone.

\b
Examples:
  fedward server init --dir consortium --name "Cardio" --host fl.example.org
  fedward server init --dir c --name "Cardio" --host 10.0.0.5 --port 9440
""",
    epilog=exit_codes_help(IdentityError, OutputError),
)
def init(
    folder: Annotated[
        Path, typer.Option("--dir", metavar="FOLDER", help="Where to make it; must be new.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the consortium.")],
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="HOST", help="Name or address by which hospitals reach this machine."
        ),
    ],
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, metavar="PORT", help="That they connect to.")
    ] = 8440,
    coordinator: Annotated[
        str, typer.Option("--coordinator", metavar="NAME", help="Of this server in the roster.")
    ] = "coordinator",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the folder and print the root's fingerprint."""
    from fedward.common.identity import spoken
    from fedward.server.authority import utc_now
    from fedward.server.founding import Plan, found

    plan = Plan(name, host, port, coordinator, passphrase_from(passphrase_file))
    made = found(folder, plan, now=utc_now())
    root = made.load_root().fingerprint
    if as_json:
        print_json({"folder": str(folder), "root_fingerprint": root, "roster_version": 1})
        return
    typer.echo(f"made {folder}; its settings are in {made.settings_file.name}")
    typer.echo(f"fingerprint of the root, for hospitals to compare:\n  {spoken(root)}")
    typer.echo(f"now move {made.root_key} to a place that is not connected to a network")


@app.command(
    "enroll",
    short_help="Make a hospital a member, and write the file to send it.",
    help="""Make a hospital a member, and write the file to send it.

The request (.csr) may come by mail. Call the hospital and let it read out the fingerprint that its
`fedward client init` printed: only that shows that the request is theirs. Give what you hear with
--fingerprint, or compare it when asked. Without a terminal and without --fingerprint nobody is
enrolled.

The same request again gives a new certificate for the same key. For a new key, revoke the old
first.

\b
Examples:
  fedward server enroll consortium north.csr
  fedward server enroll consortium north.csr --fingerprint "3f2a 91bc ..."
  fedward server enroll consortium audit-office.csr --role observer
""",
    epilog=CODES,
)
def enroll(
    folder: Folder,
    request_file: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="What the hospital sent: NAME.csr.")
    ],
    fingerprint: Annotated[
        str | None,
        typer.Option("--fingerprint", metavar="TEXT", help="As the hospital read it out."),
    ] = None,
    role: Annotated[
        Literal["site", "observer"],
        typer.Option("--role", help="A site trains; an observer only looks on."),
    ] = "site",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="What to write; by default NAME.crt."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare the fingerprint, enrol, write the bundle."""
    from fedward.common.files import read_bytes, write_atomic
    from fedward.common.identity import read_request
    from fedward.server.authority import Registrar

    registrar = Registrar.open(folder, passphrase_from(passphrase_file))
    request = read_request(read_bytes(request_file, error=IdentityError))
    confirm_fingerprint(
        fingerprint,
        request.public_key.fingerprint,
        whose=f"the key of {request.name}",
        says="the hospital",
        option="--fingerprint",
    )
    enrolled = registrar.enroll(request, role)
    target = out or Path(f"{request.name}.crt")
    write_atomic(target, enrolled.bundle)
    if as_json:
        print_json(
            {
                "name": enrolled.member.name,
                "role": enrolled.member.role,
                "fingerprint": enrolled.member.fingerprint,
                "until": enrolled.certificate.not_after.isoformat(),
                "roster_version": enrolled.version,
                "file": str(target),
            }
        )
        return
    typer.echo(f"{request.name} is a member; roster version {enrolled.version}")
    typer.echo(f"wrote {target}: send it to {request.name}; nothing in it is secret")


@app.command(
    "revoke",
    short_help="End a membership: the key is refused from now on.",
    help="""End a membership: the key is refused from now on.

A running server drops the connection within seconds and tells all others with the new roster. The
hospital can become a member again with a new key.

\b
Example:
  fedward server revoke consortium north --reason "left the consortium"
""",
    epilog=CODES,
)
def revoke(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the member.")],
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="All members see it in the roster."),
    ],
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Revoke the member's key."""
    from fedward.server.authority import Registrar

    roster = Registrar.open(folder, passphrase_from(passphrase_file)).revoke(name, reason)
    _tell(roster, f"{name} is no member any more", as_json=as_json)


@app.command(
    "rotate",
    short_help="Give the server a new key and certificate, or a new issuer as well.",
    help="""Give the server a new key and certificate, or a new issuer as well.

Do it when the server's key may be known to others, when it is reached by a new name (server.toml),
or as a habit. A running server takes up the new key by itself; hospitals learn of it with the new
roster. --issuer also replaces the issuer that signs certificates and the roster; it needs the
root's key at ca/root.key for a moment. Certificates of hospitals stay valid.

\b
Examples:
  fedward server rotate consortium
  fedward server rotate consortium --issuer
""",
    epilog=CODES,
)
def rotate(
    folder: Folder,
    issuer: Annotated[
        bool, typer.Option("--issuer", help="Replace the issuer too; needs the root's key.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Rotate the server's key."""
    from fedward.server.authority import Registrar

    registrar = Registrar.open(folder, passphrase_from(passphrase_file))
    roster = registrar.rotate(new_issuer=issuer)
    what = "the server has a new key" + (" and the consortium a new issuer" if issuer else "")
    _tell(roster, what, as_json=as_json)


@app.command(
    "roster",
    short_help="Show who is a member, and who was.",
    help="""Show who is a member, and who was, as the signed roster says.

\b
Examples:
  fedward server roster consortium
  fedward server roster consortium --json
""",
    epilog=CODES,
)
def show_roster(folder: Folder, as_json: AsJson = False) -> None:
    """Print the roster after checking its signature."""
    from fedward.server.home import ConsortiumFolder

    roster = ConsortiumFolder.open(folder).load_roster().current
    if as_json:
        print_json(roster.model_dump(mode="json"))
        return
    typer.echo(f"{roster.consortium}: roster version {roster.version}, {roster.issued_at}")
    typer.echo(f"server: {roster.host} port {roster.port}")
    for member in roster.members:
        why = f" ({member.reason})" if member.reason else ""
        typer.echo(f"  {member.name:<20} {member.role:<12} {member.status}{why}, {member.since}")
        typer.echo(f"  {'':<20} {member.fingerprint}")


def _tell(roster: Roster, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"done": what, "roster_version": roster.version})
    else:
        typer.echo(f"{what}; roster version {roster.version}")
