"""How a site enrols: `fedward client init` and `install`, with a real coordinator's folder."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.common.identities import DAY, NOW, Consortium

from fedward.client.enrolment import Installed, install, install_renewed, make_site
from fedward.client.home import SiteFolder
from fedward.common.audit import read_entries, verify_log
from fedward.common.cli import main
from fedward.common.errors import IdentityError, OutputError, SiteConfigError, StateError
from fedward.common.identity import (
    Certificate,
    PrivateKey,
    make_request,
    read_certificate,
    read_request,
    spoken,
)
from fedward.common.identity.enrolment import write_bundle

PASSPHRASE = "correct horse battery"


def nobody_is_asked(root: Certificate) -> None:
    raise AssertionError("the root is known already")


class Asked:
    """Says yes to one root only, and counts."""

    def __init__(self, consortium: Consortium) -> None:
        self.right = consortium.root.certificate.fingerprint
        self.times = 0

    def __call__(self, root: Certificate) -> None:
        self.times += 1
        if root.fingerprint != self.right:
            raise IdentityError("not that one", hint="stop")


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return make_site(tmp_path / "north", "north")


@pytest.fixture
def consortium(site: SiteFolder) -> Consortium:
    made = Consortium()
    made.keys["north"] = site.load_key()
    return made


def bundle(consortium: Consortium, version: int = 2, leaf: Certificate | None = None) -> bytes:
    roster = consortium.roster("north", "south", version=version)
    return write_bundle(
        leaf or consortium.leaf("north"),
        consortium.issuer.certificate,
        consortium.root.certificate,
        consortium.signed(roster),
        roster,
    ).encode()


def installed(site: SiteFolder, consortium: Consortium, data: bytes | None = None) -> Installed:
    asked = Asked(consortium)
    return install(site, data or bundle(consortium), confirm=asked, now=NOW)


def test_init_makes_keys_that_stay(site: SiteFolder) -> None:
    request = read_request(site.request.read_bytes())
    assert (request.name, request.public_key) == ("north", site.load_key().public)
    assert (site.path.parent / "north.csr").read_bytes() == site.request.read_bytes()
    assert len(site.load_patients_key()) == 32
    for folder in (site.path, site.identity, site.state):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for secret in (site.key, site.patients_key, site.audit_log):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert [entry.kind for entry in read_entries(site.audit_log)] == ["log-begun", "init"]


def test_two_sites_share_no_secret(tmp_path: Path) -> None:
    one, two = (make_site(tmp_path / name, name) for name in ("one", "two"))
    assert one.load_patients_key() != two.load_patients_key()
    assert one.load_key().public != two.load_key().public


def test_init_writes_settings_that_can_be_read(site: SiteFolder) -> None:
    assert site.settings.site.name == "north"
    assert site.policy_file.is_file()
    assert 'name = "north"' in site.site_file.read_text()
    # What is commented out in client.toml, but the server's address, is the default.
    text = site.settings_file.read_text()
    spelled = [
        line[2:] if line.startswith("# ") and " = " in line.split("#")[1] else line
        for line in text.splitlines()
    ]
    site.settings_file.write_text("\n".join(spelled))
    again = SiteFolder.open(site.path).settings.model_dump()
    assert again.pop("server")["port"] == 8440
    before = site.settings.model_dump()
    del before["server"]
    assert again == before


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "north"
    folder.mkdir()
    (folder / "site.toml").write_text("# ours\n")
    site = make_site(folder, "north")
    assert site.site_file.read_text() == "# ours\n"
    key = site.load_key().public
    with pytest.raises(StateError, match="is a site's folder already"):
        make_site(folder, "north")
    # A first attempt that did not come to its end is continued, with the same key.
    site.settings_file.unlink()
    assert make_site(folder, "north").load_key().public == key


@pytest.mark.parametrize("name", ["North", "", "../x", "a b", "root"])
def test_names_that_no_site_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError, match="name is not allowed"):
        make_site(tmp_path / "north", name)
    assert list(tmp_path.iterdir()) == []


def test_init_overwrites_no_request(tmp_path: Path) -> None:
    (tmp_path / "north.csr").write_text("somebody else's")
    with pytest.raises(OutputError, match=r"north\.csr exists"):
        make_site(tmp_path / "north", "north")
    assert (tmp_path / "north.csr").read_text() == "somebody else's"


def test_install(site: SiteFolder, consortium: Consortium) -> None:
    with pytest.raises(IdentityError, match="install"):
        site.load_roster()
    done = installed(site, consortium)
    assert (done.site, done.version, done.changed) == ("north", 2, True)
    identity = site.load_identity()
    assert (identity.name, identity.key.public) == ("north", consortium.key("north").public)
    assert identity.root == consortium.root.certificate
    assert site.load_roster().current.version == 2
    address = site.server()
    assert (address.host, address.port, address.name, address.coordinator) == (
        "fl.example.org",
        8440,
        "fl.example.org",
        "coordinator",
    )
    entry = list(read_entries(site.audit_log))[-1]
    assert (entry.kind, entry.facts["root"]) == ("install", consortium.root.certificate.fingerprint)
    assert verify_log(site.audit_log, site.load_public_key()).ok


def test_settings_overrule_the_roster(site: SiteFolder, consortium: Consortium) -> None:
    installed(site, consortium)
    text = site.settings_file.read_text()
    site.settings_file.write_text(text.replace('# host = "fl.example.org"', 'host = "10.0.0.1"'))
    address = SiteFolder.open(site.path).server()
    assert (address.host, address.name, address.port) == ("10.0.0.1", "10.0.0.1", 8440)


def test_installing_again_changes_nothing(site: SiteFolder, consortium: Consortium) -> None:
    data = bundle(consortium)
    installed(site, consortium, data)
    before = {path: path.read_bytes() for path in site.path.rglob("*") if path.is_file()}
    done = install(site, data, confirm=nobody_is_asked, now=NOW)
    assert not done.changed
    assert before == {path: path.read_bytes() for path in site.path.rglob("*") if path.is_file()}


def test_a_later_bundle_brings_what_is_newer(site: SiteFolder, consortium: Consortium) -> None:
    installed(site, consortium)
    later = NOW + 40 * DAY
    newer = bundle(consortium, version=5, leaf=consortium.leaf("north", now=later))
    done = install(site, newer, confirm=nobody_is_asked, now=later)
    assert (done.changed, done.version, done.until) == (True, 5, later + 90 * DAY)
    with pytest.raises(IdentityError, match="version 2, but version 5 was seen"):
        install(site, bundle(consortium), confirm=nobody_is_asked, now=later)
    # The same roster with an older certificate: the newer one stays.
    old = bundle(consortium, version=5)
    assert install(site, old, confirm=nobody_is_asked, now=later).until == later + 90 * DAY


def test_the_root_is_confirmed_once_and_pinned(site: SiteFolder, consortium: Consortium) -> None:
    other = Consortium(keys={"north": site.load_key()})
    wrong = Asked(other)
    with pytest.raises(IdentityError, match="not that one"):
        install(site, bundle(consortium), confirm=wrong, now=NOW)
    assert not site.root_certificate.exists()
    assert not site.certificate.exists()
    assert not site.roster_file.exists()
    right = Asked(consortium)
    install(site, bundle(consortium), confirm=right, now=NOW)
    assert (wrong.times, right.times) == (1, 1)
    with pytest.raises(IdentityError, match="another consortium"):
        install(site, bundle(other, version=9), confirm=nobody_is_asked, now=NOW)
    assert site.load_identity().root == consortium.root.certificate


def test_what_is_not_installed(site: SiteFolder, consortium: Consortium, tmp_path: Path) -> None:
    good = bundle(consortium)
    south = make_site(tmp_path / "south", "south")
    with pytest.raises(IdentityError, match="is for north, this is south"):
        install(south, good, confirm=nobody_is_asked, now=NOW)
    other_key = Consortium()
    with pytest.raises(IdentityError, match="another key"):
        install(site, bundle(other_key), confirm=nobody_is_asked, now=NOW)
    with pytest.raises(IdentityError, match="expired"):
        install(site, good, confirm=nobody_is_asked, now=NOW + 91 * DAY)
    with pytest.raises(IdentityError, match="not valid yet"):
        install(site, good, confirm=nobody_is_asked, now=NOW - timedelta(hours=2))
    with pytest.raises(IdentityError):
        install(site, good.replace(b"8440", b"8441"), confirm=nobody_is_asked, now=NOW)
    assert not site.root_certificate.exists()


def test_a_crash_during_install_is_mended_by_doing_it_again(
    site: SiteFolder, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, replace = bundle(consortium), Path.replace
    for allowed in range(4):
        count = 0

        def dies(self: Path, target: Path, allowed: int = allowed) -> Path:
            nonlocal count
            count += 1
            if count > allowed:
                raise KeyboardInterrupt
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dies)
            if allowed < 3:
                with pytest.raises(KeyboardInterrupt):
                    installed(site, consortium, data)
        installed(site, consortium, data)
        assert site.load_identity().name == "north"
        assert site.server().host == "fl.example.org"
        for path in (site.roster_file, site.root_certificate, site.certificate):
            path.unlink()


def test_renewing_over_the_link(site: SiteFolder, consortium: Consortium) -> None:
    installed(site, consortium)
    key, later = site.load_key(), NOW + 60 * DAY
    issuer = consortium.issuer.certificate.pem

    def renew(leaf: Certificate, chain: str = issuer) -> bool:
        return install_renewed(site, key, (leaf.pem + chain).encode(), now=later)

    fresh = consortium.leaf("north", now=later)
    assert renew(fresh)
    assert not renew(fresh)
    assert not renew(consortium.leaf("north", now=NOW + DAY))
    assert site.load_identity().certificate.not_after == later + 90 * DAY
    stranger = Consortium(keys={"north": key})
    far = later + 5 * DAY
    consortium.keys["north"] = PrivateKey.generate()
    wrong = [
        (consortium.leaf("north", now=later, days=89), issuer),
        (consortium.leaf("south", now=later), issuer),
        (consortium.leaf("north", "observer", now=later), issuer),
        (stranger.leaf("north", now=later), stranger.issuer.certificate.pem),
        (fresh, ""),
        (consortium.leaf("north", now=far), issuer),
    ]
    for leaf, chain in wrong:
        with pytest.raises(IdentityError):
            renew(leaf, chain)
    assert read_certificate(site.certificate.read_bytes()).pem == fresh.pem


def test_identity_of_another_name_is_refused(site: SiteFolder, consortium: Consortium) -> None:
    installed(site, consortium)
    text = site.settings_file.read_text()
    site.settings_file.write_text(text.replace('name = "north"', 'name = "south"', 1))
    with pytest.raises(IdentityError, match="another name"):
        SiteFolder.open(site.path).load_identity()


def test_a_patients_key_that_is_cut_off_is_refused(site: SiteFolder) -> None:
    site.patients_key.write_bytes(b"short")
    with pytest.raises(IdentityError, match="too short"):
        site.load_patients_key()
    site.patients_key.chmod(0o644)
    with pytest.raises(IdentityError, match="by others"):
        site.load_patients_key()


def test_wrong_settings(site: SiteFolder, tmp_path: Path) -> None:
    site.settings_file.write_text('[site]\nname = "north"\n[worker]\nmemory = 3\n')
    with pytest.raises(SiteConfigError, match=r"client\.toml: unknown key worker\.memory"):
        _ = SiteFolder.open(site.path).settings
    with pytest.raises(StateError, match="not a site's folder"):
        SiteFolder.open(tmp_path)


def fedward(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Consortium:
    """A consortium of today with a bundle for `north`, beside which this process works."""
    monkeypatch.chdir(tmp_path)
    assert fedward("client", "init", "--dir", "north", "--site", "north") == 0
    made = Consortium(now=datetime.now(UTC))
    made.keys["north"] = SiteFolder.open(Path("north")).load_key()
    Path("north.crt").write_bytes(bundle(made))
    return made


def test_commands(today: Consortium, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedward("client", "init", "--dir", "two", "--site", "two", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    request = read_request(Path(shown["request"]).read_bytes())
    assert request.public_key.fingerprint == shown["fingerprint"]
    heard = spoken(today.root.certificate.fingerprint)
    command = ("client", "install", "north", "north.crt")
    assert fedward(*command, "--ca-fingerprint", heard, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["changed"]
    assert first["server"] == {"host": "fl.example.org", "port": 8440}
    assert fedward(*command) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert fedward("client", "log", "verify", "north") == 0
    assert "every entry is as it was signed" in capsys.readouterr().out


def test_no_root_is_trusted_unseen(today: Consortium, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("client", "install", "north", "north.crt")
    assert fedward(*command) == 12
    assert spoken(today.root.certificate.fingerprint) in capsys.readouterr().err
    wrong = PrivateKey.generate().public.fingerprint
    assert fedward(*command, "--ca-fingerprint", wrong) == 12
    assert "the fingerprint of the root of Example is another" in capsys.readouterr().err
    assert not Path("north/identity/root.crt").exists()


def test_with_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDWARD_PASSPHRASE", PASSPHRASE)
    assert fedward("client", "init", "--dir", "north", "--site", "north") == 0
    site = SiteFolder.open(Path("north"))
    assert b"ENCRYPTED" in site.key.read_bytes()
    made = Consortium(now=datetime.now(UTC))
    made.keys["north"] = site.load_key(PASSPHRASE)
    Path("north.crt").write_bytes(bundle(made))
    heard = made.root.certificate.fingerprint
    command = ("client", "install", "north", "north.crt", "--ca-fingerprint", heard)
    monkeypatch.delenv("FEDWARD_PASSPHRASE")
    assert fedward(*command) == 12
    Path("secret").write_text(PASSPHRASE)
    Path("secret").chmod(0o600)
    assert fedward(*command, "--passphrase-file", "secret") == 0
    # Verifying needs no secret.
    assert fedward("client", "log", "verify", "north") == 0


def test_log_verify_finds_what_changed(
    today: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    log = SiteFolder.open(Path("north")).audit_log
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(reversed(lines)))
    capsys.readouterr()
    assert fedward("client", "log", "verify", "north") == 12
    captured = capsys.readouterr()
    assert "something is missing or moved" in captured.out
    assert "not what it was" in captured.err


def test_exit_codes(today: Consortium, tmp_path: Path) -> None:
    assert fedward("client", "install", "north", "none.crt") == 12
    assert fedward("client", "install", tmp_path, "north.crt") == 15
    assert fedward("client", "init", "--dir", "north", "--site", "north") == 15
    assert fedward("client", "init", "--dir", "x", "--site", "Not a name") == 12
    (tmp_path / "x.csr").write_bytes(make_request(PrivateKey.generate(), "x"))
    assert fedward("client", "init", "--dir", "y", "--site", "x") == 10
