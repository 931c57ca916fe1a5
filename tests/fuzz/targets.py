"""Everything that reads bytes from somebody else, each as a function of bytes.

A target may refuse (`FedwardError`) or accept; anything else is a defect.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tests.fuzz import seeds

from fedward.client.gate import Gate, Question
from fedward.client.worker.records import to_records
from fedward.common import records
from fedward.common.audit.entries import parse_entry
from fedward.common.errors import FedwardError, LinkError
from fedward.common.identity.certificates import read_certificates
from fedward.common.identity.enrolment import read_bundle
from fedward.common.identity.keys import PublicKey
from fedward.common.identity.requests import read_request
from fedward.common.identity.roster import read_roster
from fedward.common.metrics import Counts
from fedward.common.preprocess import Statistics, Transform
from fedward.common.statements import read_statement, signer_of, state
from fedward.common.study import parse_study
from fedward.common.wire import kinds
from fedward.common.wire.body import Body, Content, write_body
from fedward.common.wire.encoding import deflate, inflate
from fedward.common.wire.link_pb2 import Beat, Notice, Part, Range, Signed
from fedward.common.wire.message import seal, unpack, unseal
from fedward.common.wire.session import Session
from fedward.server.aggregation import check_update
from fedward.server.link.records import record_of, refusal_in

Target = Callable[[bytes], object]

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


class _Anyone:
    """A key that accepts every signature, so that what lies behind it is reached."""

    def sign(self, data: bytes) -> bytes:
        return data[:8]

    def verify(self, signature: bytes, data: bytes) -> None:
        """Everything is fine."""


def body(data: bytes) -> None:
    """A body file, to its last value."""
    path = _FOLDER / "body"
    path.write_bytes(data)
    with Body.open(path) as opened:
        opened.content()


def signed(data: bytes) -> None:
    """A message as it comes off the wire."""
    try:
        message = Signed.FromString(data)
    except DecodeError as error:
        raise LinkError("no message", hint="") from error
    unseal(message, _Anyone())


def header(data: bytes) -> None:
    """A message whose header is arbitrary, in a session."""
    session = Session(b"s" * 32, me="server", peer="north", signer=_Anyone(), verifier=_Anyone())
    session.open(Signed(header=data, signature=b"x", body=b"{}"))


def parts(data: bytes) -> None:
    """The other messages of the protocol."""
    for kind in (Part, Range, Beat, Notice):
        try:
            kind.FromString(data)
        except DecodeError:
            continue


def small(data: bytes) -> None:
    """A small body."""
    unpack(data)


def packed(data: bytes) -> None:
    """A compressed body that says it is 64 kB."""
    source = _FOLDER / "packed"
    source.write_bytes(data)
    inflate(source, _FOLDER / "plain", plain_size=64 << 10)


def roster(data: bytes) -> None:
    """A roster."""
    read_roster(data, seeds.ROOT, now=datetime(2026, 1, 2, tzinfo=UTC))


def certificates(data: bytes) -> None:
    """Certificates in PEM."""
    read_certificates(data)


def request(data: bytes) -> None:
    """A hospital's request for a certificate."""
    read_request(data)


def public_key(data: bytes) -> None:
    """A public key, and a signature."""
    PublicKey.from_pem(data)
    seeds.KEY.public.verify(data, b"something")


def audit(data: bytes) -> None:
    """A line of an audit log."""
    try:
        parse_entry(data)
    except ValueError as error:
        raise LinkError("no entry", hint="") from error


def study(data: bytes) -> None:
    """A study file."""
    parse_study(data.decode("utf-8", errors="replace"))


def transform(data: bytes) -> None:
    """The frozen preprocessing, as a server sends it."""
    Transform.from_json(data.decode("utf-8", errors="replace"))


def statistics(data: bytes) -> None:
    """Sums of a site, one of them replaced by something else."""
    levels = seeds.LEVELS if data[:1] < b"\xc0" else data.decode("utf-8", errors="replace")
    Statistics.from_arrays(seeds.STUDY, _damaged(seeds.STATISTICS, data[1:]), levels)


def counts(data: bytes) -> None:
    """Counts of a site, one array of them replaced by something else."""
    noised = data[:1] >= b"\x80"
    given = _damaged(seeds.COUNTS, data[1:])
    Counts.from_arrays("binary", given, outputs=1, bins=20, bounds=None, noised=noised)


def bundle(data: bytes) -> None:
    """An enrolment file."""
    read_bundle(data, now=seeds.NOW)


def statement(data: bytes) -> None:
    """A signed statement."""
    read_statement(data, "offer", signer_of(data), _Anyone())


def task(data: bytes) -> None:
    """What a server asks a hospital for: through the gate, into the training process."""
    path = _FOLDER / "task"
    path.write_bytes(data)
    gate = Gate(seeds.STUDY, site="north", paid=lambda *_: True)
    gate.check_task(Question(seeds.HASH, "run", 1, records.TRAIN, path), last_round=0)
    with Body.open(path) as opened:
        content = to_records(opened.content())
    seeds.APP(Message(content, dst_node_id=1, message_type=records.TRAIN), seeds.CONTEXT)


def reply(data: bytes) -> None:
    """What a hospital answers: an update that does not fit is refused, by the server."""
    path = _FOLDER / "reply"
    path.write_bytes(data)
    record = record_of(path)
    refusal_in(record)
    answer = Message(record, dst_node_id=1, message_type=records.TRAIN)
    check_update(seeds.WEIGHTS, 10.0)("north", answer)


def _damaged(valid: Mapping[str, NDArray[Any]], data: bytes) -> dict[str, NDArray[Any]]:
    """Valid arrays but for one, whose type, shape and some values come from the data."""
    arrays = {name: array.copy() for name, array in valid.items()}
    name = list(arrays)[data[0] % len(arrays)] if data else next(iter(arrays))
    if len(data) > 1 and data[1] % 2:
        arrays[name] = _array(data[2:])
        return arrays
    flat = arrays[name].astype(np.float64).reshape(-1)
    values = np.frombuffer(data[2 : 2 + (len(data) - 2) // 8 * 8], np.float64) if data[2:] else flat
    share = min(len(flat), len(values))
    flat[:share] = values[:share]
    arrays[name] = flat.reshape(arrays[name].shape)
    return arrays


def _array(data: bytes) -> NDArray[Any]:
    """An array whose type, shape and values come from the data."""
    kind = (np.float64, np.float32, np.int64, np.uint8)[data[0] % 4 if data else 0]
    usable = data[2 : 2 + (len(data) - 2) // 8 * 8] if len(data) > 9 else b""
    values = np.frombuffer(usable, dtype=np.float64)
    with np.errstate(all="ignore"):
        values = values.astype(kind)
    width = data[1] % 5 + 1 if len(data) > 1 else 1
    return values.reshape(-1, width) if width > 1 and len(values) % width == 0 else values


TARGETS: dict[str, Target] = {
    function.__name__: function
    for function in (
        body, signed, header, parts, small, packed, roster, certificates, request, public_key,
        audit, study, transform, statistics, counts, bundle, statement, task, reply,
    )
}  # fmt: skip


def corpus(name: str) -> list[bytes]:
    """Something valid to begin with."""
    path = _FOLDER / "seed"
    if name == "body":
        write_body(path, Content({"a": 1}, {"b": 2.0}, {"w": np.ones((2, 3), np.float32)}))
        return [path.read_bytes()]
    if name == "packed":
        path.write_bytes(bytes(64 << 10))
        deflate(path, _FOLDER / "deflated")
        return [(_FOLDER / "deflated").read_bytes()]
    if name in ("signed", "header"):
        session = Session(
            b"s" * 32, me="north", peer="server", signer=_Anyone(), verifier=_Anyone()
        )
        message = seal(session.header(kinds.PROBE), _Anyone(), b"{}")
        return [message.SerializeToString() if name == "signed" else message.header]
    if name == "task":
        config = {records.STUDY_HASH: seeds.HASH, records.ROUND: 1}
        asked = Content({**config, records.TRANSFORM: seeds.TRANSFORM}, {}, seeds.WEIGHTS)
        return [write_body(path, asked).path.read_bytes()]
    if name == "reply":
        refused = Content({records.ERROR_CODE: 5, records.ERROR_REASON: "no"})
        update = Content({}, {records.WEIGHT: 1.0}, seeds.WEIGHTS)
        return [write_body(path, each).path.read_bytes() for each in (update, refused)]
    if name == "statement":
        return [state("offer", "server", {"a": 1}, _Anyone())]
    return seeds.VALID.get(name, [b"{}"])


def survives(target: Target, data: bytes) -> None:
    """Run a target; a refusal is an answer."""
    try:
        target(data)
    except FedwardError:
        return
