"""The coordinator's authority: founding, enrolling, renewing, revoking, rotating; and crashes."""

from __future__ import annotations

import itertools
import json
import os
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedward.common.audit import read_entries, verify_log
from fedward.common.cli import main
from fedward.common.errors import IdentityError, OutputError, SiteConfigError, StateError
from fedward.common.identity import (
    PrivateKey,
    Request,
    check_chain,
    make_request,
    pkcs8,
    read_certificate,
    read_certificates,
    read_request,
    read_roster,
    spoken,
)
from fedward.common.identity.enrolment import check_own, read_bundle
from fedward.common.lock import held
from fedward.server.authority import Registrar
from fedward.server.founding import Plan, found
from fedward.server.home import ConsortiumFolder, upcoming

PLAN = Plan("Cardio", "fl.example.org")
NORTH, SOUTH = PrivateKey.generate(), PrivateKey.generate()
PASSPHRASE = "correct horse battery"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> ConsortiumFolder:
    return found(tmp_path / "consortium", PLAN, now=clock.now)


@pytest.fixture
def registrar(folder: ConsortiumFolder, clock: Clock) -> Registrar:
    return Registrar(folder, clock=clock)


def request(key: PrivateKey = NORTH, name: str = "north") -> Request:
    return read_request(make_request(key, name))


def kinds(folder: ConsortiumFolder) -> list[str]:
    return [entry.kind for entry in read_entries(folder.audit_log)]


def assert_sound(folder: ConsortiumFolder, passphrase: str | None = None) -> None:
    """Keys, certificates, roster and log belong together."""
    identity = folder.load_identity(passphrase)
    roster = folder.load_roster().current
    member = roster.by_fingerprint(identity.certificate.fingerprint)
    assert member is not None
    assert member.active
    assert [m for m in roster.members if m.active and m.role == "coordinator"] == [member]
    assert verify_log(folder.audit_log, identity.key.public).problem == ""
    assert not list(folder.path.rglob("*.next"))


def test_founding(folder: ConsortiumFolder, clock: Clock) -> None:
    identity = folder.load_identity()
    check_chain(identity.certificate, identity.issuer, identity.root, now=clock.now)
    assert (identity.name, identity.certificate.role) == ("coordinator", "coordinator")
    assert identity.certificate.hosts[0] == "fl.example.org"
    assert {"localhost", "127.0.0.1"} <= set(identity.certificate.hosts)
    assert folder.load_roster().current.version == 1
    assert folder.settings.server.consortium == "Cardio"
    assert kinds(folder) == ["log-begun", "found"]
    assert_sound(folder)


def test_secrets_are_for_their_owner_only(folder: ConsortiumFolder) -> None:
    for inside in (folder.path, folder.ca, folder.identity):
        assert stat.S_IMODE(inside.stat().st_mode) == 0o700
    keys = list(folder.path.rglob("*.key"))
    assert len(keys) == 3
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert not [key for key in keys if b"ENCRYPTED" in key.read_bytes()]


def test_with_a_passphrase_every_key_is_encrypted(tmp_path: Path, clock: Clock) -> None:
    plan = Plan("Cardio", "fl.example.org", passphrase=PASSPHRASE)
    folder = found(tmp_path / "consortium", plan, now=clock.now)
    with pytest.raises(IdentityError, match="encrypted"):
        Registrar(folder, clock=clock)
    registrar = Registrar(folder, PASSPHRASE, clock)
    registrar.enroll(request())
    registrar.rotate(new_issuer=True)
    keys = list(folder.path.rglob("*.key"))
    assert all(b"ENCRYPTED" in key.read_bytes() for key in keys)
    assert_sound(folder, PASSPHRASE)


def test_a_key_is_opened_once_in_a_process(tmp_path: Path, clock: Clock) -> None:
    """However often the registrar changes something: each opening costs half a second."""
    plan = Plan("Cardio", "fl.example.org", passphrase=PASSPHRASE)
    folder = found(tmp_path / "consortium", plan, now=clock.now)
    pkcs8.unseal.cache_clear()
    registrar = Registrar(folder, PASSPHRASE, clock)
    registrar.enroll(request())
    for _ in range(3):
        registrar.renew("north", make_request(NORTH, "north"))
    assert pkcs8.unseal.cache_info().misses == 2  # the server's and the issuer's


@pytest.mark.parametrize("root", ["here", "away"])
@pytest.mark.parametrize("before", [None, PASSPHRASE])
def test_all_keys_get_a_passphrase(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, root: str, before: str | None
) -> None:
    monkeypatch.setattr(pkcs8, "ROUNDS", 1000)
    plan = Plan("Cardio", "fl.example.org", passphrase=before)
    folder = found(tmp_path / "consortium", plan, now=clock.now)
    away = tmp_path / "root.key"
    if root == "away":
        folder.root_key.rename(away)
    registrar = Registrar(folder, before, clock)
    registrar.enroll(request())
    there = ("server.key", "issuer.key") + (("root.key",) if root == "here" else ())
    assert registrar.encrypt_keys("another sentence") == there
    registrar.renew("north", make_request(NORTH, "north"))  # it goes on with the new one
    keys = list(folder.path.rglob("*.key*"))
    assert sorted(key.name for key in keys) == sorted(there)
    assert all(pkcs8.is_sealed(key.read_bytes()) for key in keys)
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    with pytest.raises(IdentityError, match="passphrase"):
        Registrar(folder, before, clock)
    again = Registrar(folder, "another sentence", clock)
    again.rotate(new_issuer=root == "here")
    assert_sound(folder, "another sentence")


def test_a_passphrase_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pkcs8, "ROUNDS", 1000)
    folder = found(tmp_path / "consortium", PLAN, now=datetime.now(UTC))
    (tmp_path / "secret").write_text(PASSPHRASE)
    (tmp_path / "secret").chmod(0o600)
    command = ["server", "encrypt-keys", str(folder.path)]
    file = ["--passphrase-file", str(tmp_path / "secret")]
    assert main(command) == IdentityError.exit_code
    with held(folder.lock, who="a server"):
        assert main([*command, *file]) == StateError.exit_code
    assert main([*command, *file]) == 0
    assert "encrypted server.key, issuer.key, root.key" in capsys.readouterr().out
    assert_sound(folder, PASSPHRASE)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_founding_replaces_nothing(tmp_path: Path, clock: Clock, there: str) -> None:
    path = tmp_path / "consortium"
    if there == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine").touch()
    with pytest.raises(OutputError, match="exists already"):
        found(path, PLAN, now=clock.now)
    with pytest.raises(StateError, match="not a consortium's folder"):
        ConsortiumFolder.open(path)


@pytest.mark.parametrize(
    "plan",
    [
        Plan("", "fl.example.org"),
        Plan("Cardio", "fü.example.org"),
        Plan("Cardio", "x", name="No Name"),
        Plan("Cardio", "x", passphrase="short"),
    ],
)
def test_a_founding_that_fails_leaves_nothing(tmp_path: Path, clock: Clock, plan: Plan) -> None:
    with pytest.raises((IdentityError, SiteConfigError)):
        found(tmp_path / "consortium", plan, now=clock.now)
    assert list(tmp_path.iterdir()) == []


def test_enrolling(registrar: Registrar, folder: ConsortiumFolder, clock: Clock) -> None:
    enrolled = registrar.enroll(request())
    bundle = read_bundle(enrolled.bundle.encode(), now=clock.now)
    check_own(bundle, "north", NORTH.public)
    assert bundle.roster.version == enrolled.version == 2
    assert bundle.root.fingerprint == folder.load_root().fingerprint
    assert bundle.leaf.not_after == clock.now + timedelta(days=90)
    assert kinds(folder)[-1] == "enroll"
    assert_sound(folder)


def test_enrolling_again_changes_no_roster(registrar: Registrar, clock: Clock) -> None:
    registrar.enroll(request())
    clock.now += timedelta(days=60)
    again = registrar.enroll(request())
    assert (again.version, registrar.roster.version) == (2, 2)
    assert again.certificate.not_after == clock.now + timedelta(days=90)


def test_what_is_not_enrolled(registrar: Registrar) -> None:
    registrar.enroll(request())
    with pytest.raises(IdentityError, match="enrolled with another key"):
        registrar.enroll(request(SOUTH, "north"))
    with pytest.raises(IdentityError, match="as site north already"):
        registrar.enroll(request(NORTH, "south"))
    with pytest.raises(IdentityError, match="as site north already"):
        registrar.enroll(request(), "observer")
    with pytest.raises(IdentityError, match="enrolled with another key"):
        registrar.enroll(request(SOUTH, "coordinator"))
    with pytest.raises(IdentityError, match="one coordinator"):
        registrar.enroll(request(SOUTH, "second"), "coordinator")
    assert registrar.roster.version == 2


def test_revoking(registrar: Registrar, folder: ConsortiumFolder) -> None:
    registrar.enroll(request())
    roster = registrar.revoke("north", "left")
    assert roster == registrar.roster == folder.load_roster().current
    gone = roster.by_fingerprint(NORTH.public.fingerprint)
    assert gone is not None
    assert (gone.active, gone.reason) == (False, "left")
    with pytest.raises(IdentityError, match="was revoked"):
        registrar.enroll(request())
    with pytest.raises(IdentityError, match="no active member"):
        registrar.revoke("north", "again")
    with pytest.raises(IdentityError, match="no active member"):
        registrar.renew("north", make_request(NORTH, "north"))
    with pytest.raises(IdentityError, match="cannot revoke itself"):
        registrar.revoke("coordinator", "no")
    # With a new key it is a member again; the old one stays refused.
    registrar.enroll(request(SOUTH, "north"))
    member = registrar.roster.member("north")
    assert member is not None
    assert member.public_key == SOUTH.public
    old = registrar.roster.by_fingerprint(NORTH.public.fingerprint)
    assert old is not None
    assert not old.active
    assert_sound(folder)


def test_renewing(registrar: Registrar, folder: ConsortiumFolder, clock: Clock) -> None:
    registrar.enroll(request())
    clock.now += timedelta(days=70)
    chain, roster = registrar.renew("north", make_request(NORTH, "north"))
    leaf, issuer = read_certificates(chain)
    check_chain(leaf, issuer, folder.load_root(), now=clock.now + timedelta(days=89))
    assert (leaf.name, leaf.role, leaf.public_key) == ("north", "site", NORTH.public)
    assert read_roster(roster, folder.load_root().pem, now=clock.now).version == 2
    for site, key, name in (
        ("north", SOUTH, "north"),
        ("north", NORTH, "south"),
        ("south", SOUTH, "south"),
        ("coordinator", NORTH, "coordinator"),
    ):
        with pytest.raises(IdentityError):
            registrar.renew(site, make_request(key, name))
    assert kinds(folder).count("renew") == 1


def test_the_server_renews_its_own(
    registrar: Registrar, folder: ConsortiumFolder, clock: Clock
) -> None:
    before = folder.load_identity()
    clock.now += timedelta(days=60)
    registrar.renew_server()
    after = folder.load_identity()
    assert after.certificate.not_after > before.certificate.not_after
    assert after.key.public == before.key.public
    assert registrar.roster.version == 1
    assert_sound(folder)


@pytest.mark.parametrize("new_issuer", [False, True])
def test_rotating(
    registrar: Registrar, folder: ConsortiumFolder, clock: Clock, new_issuer: bool
) -> None:
    registrar.enroll(request())
    old, issuer = folder.load_identity(), folder.issuer_certificate.read_bytes()
    clock.now += timedelta(days=1)
    roster = registrar.rotate(new_issuer=new_issuer)
    new = folder.load_identity()
    assert new.key.public != old.key.public
    assert (folder.issuer_certificate.read_bytes() != issuer) == new_issuer
    gone = roster.by_fingerprint(old.certificate.fingerprint)
    assert gone is not None
    assert (gone.active, gone.reason) == (False, "rotated")
    assert roster.coordinator.public_key == new.key.public
    assert verify_log(folder.audit_log, old.key.public).ok
    # What a site has stays good: its certificate, and the root that it pinned.
    read_roster(folder.roster_file.read_bytes(), old.root_pem, not_before_version=2, now=clock.now)
    registrar.enroll(request(SOUTH, "south"))
    assert_sound(folder)


def test_a_new_issuer_needs_the_root(registrar: Registrar, folder: ConsortiumFolder) -> None:
    key = folder.root_key.read_bytes()
    folder.root_key.unlink()
    with pytest.raises(IdentityError, match="root's key is not here"):
        registrar.rotate(new_issuer=True)
    # All else goes on without it.
    registrar.enroll(request())
    registrar.rotate()
    assert_sound(folder)
    PrivateKey.generate().save(folder.root_key)
    with pytest.raises(IdentityError, match="do not belong together"):
        registrar.rotate(new_issuer=True)
    folder.root_key.write_bytes(key)
    registrar.rotate(new_issuer=True)
    assert_sound(folder)


def test_a_new_address_comes_with_the_next_roster(
    registrar: Registrar, folder: ConsortiumFolder, clock: Clock
) -> None:
    text = folder.settings_file.read_text()
    folder.settings_file.write_text(text.replace("fl.example.org", "new.example.org", 1))
    moved = Registrar(ConsortiumFolder.open(folder.path), clock=clock)
    roster = moved.rotate()
    assert roster.host == "new.example.org"
    assert "new.example.org" in moved.folder.load_identity().certificate.hosts


class Killed(BaseException):
    """The process ends here."""


def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let nothing happen on the disk after `at` steps."""
    count = 0
    replace, sync, write = Path.replace, os.fsync, os.write

    def dies() -> None:
        nonlocal count
        count += 1
        if count > at:
            raise Killed

    def watch(action: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            dies()
            return action(*arguments)

        return watched

    monkeypatch.setattr(Path, "replace", watch(replace))
    monkeypatch.setattr(os, "fsync", watch(sync))
    monkeypatch.setattr(os, "write", watch(write))


@pytest.mark.parametrize("action", ["rotate", "rotate-issuer", "enroll", "revoke"])
def test_a_crash_at_any_point_leaves_the_old_or_the_new(
    tmp_path: Path, action: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in itertools.count():
        folder = found(tmp_path / f"c{at}", PLAN, now=clock.now)
        registrar = Registrar(folder, clock=clock)
        if action == "revoke":
            registrar.enroll(request())
        actions: dict[str, Callable[[], object]] = {
            "rotate": registrar.rotate,
            "rotate-issuer": lambda r=registrar: r.rotate(new_issuer=True),
            "enroll": lambda r=registrar: r.enroll(request()),
            "revoke": lambda r=registrar: r.revoke("north", "left"),
        }
        killed = False
        with monkeypatch.context() as patch:
            killing(patch, at)
            try:
                actions[action]()
            except Killed:
                killed = True
        again = Registrar(ConsortiumFolder.open(folder.path), clock=clock)
        assert_sound(folder)
        again.enroll(request(SOUTH, "south"))
        again.rotate()
        assert_sound(folder)
        if not killed:
            break
    assert at >= 5


def test_one_change_at_a_time(folder: ConsortiumFolder, clock: Clock) -> None:
    names = [f"site-{number}" for number in range(6)]

    def enroll(name: str) -> None:
        Registrar(folder, clock=clock).enroll(request(PrivateKey.generate(), name))

    threads = [threading.Thread(target=enroll, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    roster = folder.load_roster().current
    assert roster.version == 7
    assert {member.name for member in roster.members} == {"coordinator", *names}
    assert_sound(folder)


def test_a_log_held_open_follows_a_rotation(registrar: Registrar, folder: ConsortiumFolder) -> None:
    with folder.open_audit_log() as log:
        log.append("before")
        registrar.rotate()
        log.append("after")
    assert_sound(folder)


def test_settings(folder: ConsortiumFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.database == folder.path / "registry.sqlite"
    text = folder.settings_file.read_text()
    # Every key that is commented out is allowed, and what it shows is the default.
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line]
    sections = [line for line in text.splitlines() if line.startswith(("[", "# "))]
    assert {"[server]", "[link]"} <= set(sections)
    assert len(lines) > 10
    uncommented = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line.split("#")[1] else line
        for line in text.splitlines()
    )
    folder.settings_file.write_text(uncommented)
    spelled_out = ConsortiumFolder.open(folder.path).settings
    without = folder.settings.model_dump()
    without["server"]["public_port"] = 8440  # has no default to show
    assert spelled_out.model_dump() == without

    url = "postgresql://fedward:${SECRET_OF_DB}@db/fedward"
    folder.settings_file.write_text(text.replace("# database", f'database = "{url}" #'))
    again = ConsortiumFolder.open(folder.path)
    with pytest.raises(SiteConfigError, match="SECRET_OF_DB"):
        _ = again.database
    monkeypatch.setenv("SECRET_OF_DB", "pass")
    assert again.database == "postgresql://fedward:pass@db/fedward"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[link]", "[link]\nheartbeat = 3", "unknown key link.heartbeat"),
        ("[link]", "[link]\nheartbeat_s = 50.0", "absence_s must be at least"),
        ("[certificates]", "[certificates]\nleaf_days = 91", "leaf_days"),
        ("[link]", "[link", "not valid TOML"),
    ],
)
def test_wrong_settings(folder: ConsortiumFolder, old: str, new: str, problem: str) -> None:
    text = folder.settings_file.read_text()
    folder.settings_file.write_text(text.replace(old, new, 1))
    with pytest.raises(SiteConfigError, match=problem):
        _ = ConsortiumFolder.open(folder.path).settings


def fedward(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "north.csr").write_bytes(make_request(NORTH, "north"))
    options = ("--name", "Cardio", "--host", "fl.example.org")
    assert fedward("server", "init", "--dir", "consortium", *options) == 0
    return tmp_path / "consortium"


def test_commands(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ("--dir", "again", "--name", "x", "--host", "y")
    assert fedward("server", "init", *again) == 0
    root = ConsortiumFolder.open(Path("again")).load_root().fingerprint
    assert spoken(root) in capsys.readouterr().out
    heard = spoken(NORTH.public.fingerprint)
    assert fedward("server", "enroll", made, "north.csr", "--fingerprint", heard, "--json") == 0
    assert json.loads(capsys.readouterr().out)["roster_version"] == 2
    assert read_certificate(Path("north.crt").read_bytes()).name == "north"
    assert fedward("server", "revoke", made, "north", "--reason", "left") == 0
    assert fedward("server", "rotate", made, "--issuer") == 0
    capsys.readouterr()
    assert fedward("server", "roster", made) == 0
    shown = capsys.readouterr().out
    assert "roster version 4" in shown
    assert "revoked (left)" in shown
    assert fedward("server", "roster", made, "--json") == 0
    assert json.loads(capsys.readouterr().out)["version"] == 4
    assert fedward("server", "log", "verify", made) == 0
    assert fedward("server", "init", "--dir", made, "--name", "x", "--host", "y") == 10
    assert fedward("server", "roster", made / "ca") == 15


def test_nobody_is_enrolled_unseen(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is nobody to ask; a wrong fingerprint is no fingerprint."""
    assert fedward("server", "enroll", made, "north.csr") == 12
    shown = capsys.readouterr().err
    assert spoken(NORTH.public.fingerprint) in shown
    assert "nobody compared" in shown
    for heard in ("", spoken(SOUTH.public.fingerprint), NORTH.public.fingerprint[:32]):
        assert fedward("server", "enroll", made, "north.csr", "--fingerprint", heard) == 12
    assert ConsortiumFolder.open(made).load_roster().current.version == 1
    assert not Path("north.crt").exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 12), ("\n", 12)])
def test_a_person_is_asked(
    made: Path, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _="": answer.strip())
    assert fedward("server", "enroll", made, "north.csr") == code
    assert Path("north.crt").exists() == (code == 0)


def test_log_verify_finds_what_changed(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ConsortiumFolder.open(made)
    head = list(read_entries(folder.audit_log))[-1]
    expected = f"{head.seq}:{head.hash}"
    assert fedward("server", "log", "verify", made, "--expected", expected) == 0
    assert fedward("server", "log", "verify", made, "--expected", f"9:{head.hash}") == 12
    assert fedward("server", "log", "verify", made, "--expected", "nonsense") == 15
    certificate = folder.server_certificate
    log = folder.audit_log
    assert fedward("server", "log", "verify", log, "--certificate", certificate) == 0
    assert fedward("server", "log", "verify", log) == 12
    Path("other.pem").write_text(NORTH.public.pem)
    assert fedward("server", "log", "verify", log, "--certificate", "other.pem") == 12
    capsys.readouterr()
    log.write_bytes(log.read_bytes().replace(b"Cardio", b"Cordia"))
    assert fedward("server", "log", "verify", made, "--json") == 12
    assert json.loads(capsys.readouterr().out)["problem"] == "entry 2 was changed"


def test_passphrase_by_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text(PASSPHRASE + "\n")
    Path("secret").chmod(0o600)
    Path("north.csr").write_bytes(make_request(NORTH, "north"))
    options = ("--name", "x", "--host", "y", "--passphrase-file", "secret")
    assert fedward("server", "init", "--dir", "c", *options) == 0
    enroll = ("server", "enroll", "c", "north.csr", "--fingerprint", NORTH.public.fingerprint)
    assert fedward(*enroll) == 12
    monkeypatch.setenv("FEDWARD_PASSPHRASE", "another passphrase")
    assert fedward(*enroll) == 12
    monkeypatch.setenv("FEDWARD_PASSPHRASE", PASSPHRASE)
    assert fedward(*enroll) == 0
    # The roster and the log are for anybody who may read the folder.
    monkeypatch.delenv("FEDWARD_PASSPHRASE")
    assert fedward("server", "roster", "c") == 0
    assert fedward("server", "log", "verify", "c") == 0


def test_upcoming_files_of_a_rotation_that_was_not_committed_to(
    registrar: Registrar, folder: ConsortiumFolder, clock: Clock
) -> None:
    PrivateKey.generate().save(upcoming(folder.server_key))
    before = folder.load_identity().key.public
    Registrar(folder, clock=clock)
    assert folder.load_identity().key.public == before
    assert_sound(folder)
