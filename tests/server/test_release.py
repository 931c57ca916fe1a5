"""A release verifies offline as it is, and not at all after any change."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedward.client.predict import predict
from fedward.common.audit import AuditLog
from fedward.common.cli import main
from fedward.common.errors import FedwardError, IdentityError, ModelError, StateError
from fedward.common.identity import PrivateKey, make_root
from fedward.common.statements import RELEASE, state
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Header, Signed
from fedward.common.wire.message import seal
from fedward.server.authority import utc_now
from fedward.server.registry import State
from fedward.server.release import MANIFEST, Releaser, digests, privacy_statement
from fedward.server.verification import verify_release
from fedward.simulations.fakes import small_study

_helper = runpy.run_path(str(Path(__file__).with_name("consortium.py")))
Consortium, LoopCarrier, Service = (_helper[n] for n in ("Consortium", "LoopCarrier", "Service"))
SITES = _helper["SITES"]


class Released:
    """A run that was released; made once, copied for each test."""

    def __init__(self, folder: Path) -> None:
        self.consortium = Consortium(folder)
        study = _helper["a_study"](training={"rounds": 2})
        service = Service(self.consortium, LoopCarrier(self.consortium, study))
        try:
            service.approve(service.offer(study))
            self.run = service.until(State.RELEASED, State.FAILED)
            assert self.run.state is State.RELEASED, self.run.reason
        finally:
            service.close()
        self.folder = self.consortium.folder_for_run(self.run.id) / "release"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return Released(tmp_path_factory.mktemp("consortium"))


@pytest.fixture
def release(original: Released, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.folder, tmp_path / "release"))


def seal_again(original: Released, release: Path, key: Any = None, **changes: Any) -> None:
    """What a coordinator could do: sign whatever is there now."""
    said = json.loads((release / MANIFEST).read_text())["content"]
    said = {**said, "files": digests(release), **changes}
    key = key or original.consortium.key
    (release / MANIFEST).write_bytes(state(RELEASE, "coordinator", said, key))


def test_a_release_verifies(original: Released, release: Path) -> None:
    found = verify_release(release, root_pem=original.consortium.root_pem)
    assert (found.consortium, found.signer, found.run) == ("Test", "coordinator", original.run.id)
    assert (found.rounds, found.contributions, found.proven) == (2, 6, 6)
    assert found.sites == dict.fromkeys(SITES, 2)
    assert found.fingerprint == original.consortium.key.public.fingerprint


def test_the_command_says_so(
    original: Released, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root.crt"
    root.write_bytes(original.consortium.root_pem)
    arguments = ["server", "verify-release", str(release), "--root", str(root)]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proven"] == 6
    assert main(arguments) == 0
    assert "6 of 6 contributions are proven" in capsys.readouterr().out
    (release / "privacy.json").write_text("{}")
    assert main(arguments) == ModelError.exit_code
    assert "privacy.json is not as it was released" in capsys.readouterr().err


def test_the_model_predicts(release: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("x0,x1,x2\n3,-3,3\n-3,3,-3\n")
    high, low = predict(release / "model", table).table["probability_yes"]
    assert high > low


def test_no_changed_byte_goes_unnoticed(original: Released, release: Path) -> None:
    root = original.consortium.root_pem
    for path in sorted(p for p in release.rglob("*") if p.is_file()):
        content = path.read_bytes()
        for place in {0, len(content) // 3, len(content) // 2, len(content) - 1}:
            spoilt = bytearray(content)
            spoilt[place] ^= 0x01
            path.write_bytes(bytes(spoilt))
            with pytest.raises(FedwardError):
                verify_release(release, root_pem=root)
        path.write_bytes(content[:-1])
        with pytest.raises(FedwardError):
            verify_release(release, root_pem=root)
        path.unlink()
        with pytest.raises(FedwardError):
            verify_release(release, root_pem=root)
        path.write_bytes(content)
    verify_release(release, root_pem=root)


def test_what_was_added_is_noticed(original: Released, release: Path) -> None:
    (release / "model" / "more.txt").write_text("")
    with pytest.raises(ModelError, match=r"model/more\.txt does not belong to the release"):
        verify_release(release, root_pem=original.consortium.root_pem)
    (release / "model" / "more.txt").unlink()
    (release / "link").symlink_to(release / "model")
    with pytest.raises(ModelError, match="link is a link"):
        verify_release(release, root_pem=original.consortium.root_pem)


def test_another_root_is_refused(release: Path) -> None:
    other = make_root(PrivateKey.generate(), "Test", now=utc_now())
    with pytest.raises(IdentityError):
        verify_release(release, root_pem=other.pem.encode())
    with pytest.raises(IdentityError, match="nothing to check the signatures against"):
        verify_release(release)


def test_another_signer_is_refused(original: Released, release: Path) -> None:
    for key in (PrivateKey.generate(), original.consortium.keys["site-1"]):
        seal_again(original, release, key)
        with pytest.raises(IdentityError, match="not signed by a coordinator"):
            verify_release(release, root_pem=original.consortium.root_pem)


@pytest.mark.parametrize("what", ["gone", "other round", "other site", "tampered"])
def test_even_the_coordinator_cannot_invent_a_contribution(
    original: Released, release: Path, what: str
) -> None:
    path = release / "receipts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if what == "gone":
        lines.pop(1)
    elif what == "other round":
        lines[1]["evidence"] = lines[4]["evidence"]
    elif what == "other site":
        lines[1]["evidence"] = lines[2]["evidence"]
    else:
        spoilt = bytearray.fromhex(lines[1]["evidence"])
        spoilt[20] ^= 1
        lines[1]["evidence"] = spoilt.hex()
    path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    seal_again(original, release)
    with pytest.raises(FedwardError):
        verify_release(release, root_pem=original.consortium.root_pem)


@pytest.mark.parametrize(
    ("changes", "proven"),
    [({}, True), ({"body_size": 300, "plain_size": 300}, False), ({"kind": kinds.RECEIPT}, False)],
)
def test_a_signed_refusal_proves_no_contribution(
    changes: dict[str, Any], proven: bool, original: Released, release: Path
) -> None:
    """A refusal, too, is a reply to that task in that round, signed by the hospital."""
    path = release / "receipts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    signed = Signed.FromString(bytes.fromhex(lines[0]["evidence"]))
    header = Header.FromString(signed.header)
    for name, value in changes.items():
        setattr(header, name, value)
    said = seal(header, original.consortium.keys[lines[0]["site"]])
    lines[0]["evidence"] = said.SerializeToString().hex()
    path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    seal_again(original, release)
    if proven:
        assert verify_release(release, root_pem=original.consortium.root_pem).proven == 6
        return
    with pytest.raises(ModelError, match="is for something else"):
        verify_release(release, root_pem=original.consortium.root_pem)


def test_what_is_not_proven_is_said(original: Released, release: Path) -> None:
    (release / "receipts.jsonl").write_text("")
    seal_again(original, release, proves=False)
    found = verify_release(release, root_pem=original.consortium.root_pem)
    assert (found.contributions, found.proven) == (6, 0)


def test_another_model_under_the_same_rounds_is_noticed(original: Released, release: Path) -> None:
    path = release / "participation.json"
    said = json.loads(path.read_text())
    said["rounds"][-1]["model"] = "0" * 64
    path.write_text(json.dumps(said))
    seal_again(original, release)
    with pytest.raises(ModelError, match="not that of the last round"):
        verify_release(release, root_pem=original.consortium.root_pem)


def test_nothing_in_it_counts_patients_or_noise(release: Path) -> None:
    text = "".join(
        p.read_text() for p in release.rglob("*") if p.suffix in (".json", ".jsonl", ".md")
    )
    for word in ("noise_multiplier_", "sigma", 'patients":', "sampling_rate"):
        assert word not in text
    private = small_study(
        privacy={"mode": "dp", "epsilon": 3.0, "delta": 1e-5},
        evaluation={"min_cell": 10},
    )
    said = privacy_statement(private)
    assert (said["epsilon"], said["delta"], said["unit"]) == (3.0, 1e-5, "patient")
    assert set(said) == {"mode", "unit", "epsilon", "delta", "relation", "statement"}


def test_a_contribution_without_a_receipt_is_not_released(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    study = _helper["a_study"]()
    service = Service(consortium, LoopCarrier(consortium, study))
    keep = service.registry.record_round

    def lose(run: str, round_: Any, **options: Any) -> bool:
        return bool(keep(run, round_, **{**options, "receipts": []}))

    try:
        service.registry.record_round = lose  # type: ignore[method-assign]
        service.approve(service.offer(study))
        run = service.until(State.RELEASED, State.FAILED)
        assert run.state is State.FAILED
        assert "no receipt for site-1 in round 1" in run.reason
        assert not (consortium.folder_for_run(run.id) / "release").exists()
    finally:
        service.close()


def test_a_release_that_is_there_stays(original: Released) -> None:
    before = digests(original.folder)
    service = Service(original.consortium, LoopCarrier(original.consortium, small_study()))
    try:
        with pytest.raises(StateError):
            service.registry.resume(original.run.id)
    finally:
        service.close()
    assert digests(original.folder) == before


def test_a_release_that_a_killed_service_did_not_record_is_recorded_once(
    original: Released, tmp_path: Path
) -> None:
    consortium = original.consortium
    nobody: Any = None  # what is there needs no registry
    with AuditLog.open(tmp_path / "audit.log", consortium.key) as audit:
        release = Releaser(
            nobody, nobody, audit, "coordinator", consortium.key, consortium.folder_for_run
        )
        for _ in range(2):
            release(original.run, nobody, nobody)
        [entry] = [entry for entry in audit.entries() if entry.kind == "release"]
    with AuditLog.open(consortium.folder / "audit.log", consortium.key) as audit:
        [known] = [entry for entry in audit.entries() if entry.kind == "release"]
    assert dict(entry.facts) == dict(known.facts)
