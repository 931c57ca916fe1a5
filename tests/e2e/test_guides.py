"""docs/guides, followed literally: four people, a coordinator and two hospitals, in one consortium.

What stands in the guides and is something else here:

    fl.example.org        localhost: no name is looked up
    8440, 9441            free ports
    "d9f0 4c91 40da …"    after --fingerprint or --ca-fingerprint: what was "read out on the
                          telephone", which is what `init` printed at the other place
    north                 south, when the second hospital's people follow the guides
    stick/                a folder for the coordinator's USB stick
    public.csv, patients.csv   tables made here: a researcher and a hospital have their own
    blocks for systemd    not run: the units that they name must be in deploy/systemd

Everything else is as a reader pastes it, with real processes, certificates and ports.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.settings import ClientSettings
from fedward.common.cli import main
from fedward.server.settings import ServerSettings
from fedward.simulations.rehearsal.services import free_port

from .guide_player import NotAsShownError, Player, as_shown, commands, steps

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "guides"
UNITS = ROOT / "deploy" / "systemd"
SETTINGS = {"server.toml": ServerSettings, "client.toml": ClientSettings}

RESEARCHER, COORDINATOR, IT, STEWARD = "researcher", "coordinator", "hospital-it", "data-steward"
HOSPITALS = ("north", "south")

# Who does which step of which guide, in which order: (guide, step, place, about).
Turn = tuple[str, str, str, str]


def turns() -> list[Turn]:
    """The story. A hospital's people act at their place; the coordinator enrols each hospital."""

    def at(guide: str, *names: str, place: str = "", about: str = "") -> list[Turn]:
        return [(guide, name, place or guide, about) for name in names]

    def everywhere(guide: str, *names: str) -> list[Turn]:
        return [turn for place in HOSPITALS for turn in at(guide, *names, place=place)]

    story = at(RESEARCHER, "study", "refused", "simulate", "sweep", "rehearse")
    story += at(COORDINATOR, "found")
    for place in HOSPITALS:
        story += at(IT, "install", "init", place=place)
        story += at(COORDINATOR, "enroll", about=place)
        story += at(IT, "join", place=place)
    story += at(COORDINATOR, "roster", "run", "doctor")
    story += everywhere(STEWARD, "policy", "data")
    story += everywhere(IT, "doctor", "monitor", "run", "look")
    story += at(COORDINATOR, "submit")
    story += at(STEWARD, "offer", "refuse", "approve", place="north")
    story += at(IT, "backup", place="north")
    story += at(STEWARD, "offer", "approve", place="south")
    story += at(COORDINATOR, "follow")
    story += at(IT, "again", place="north")
    story += at(COORDINATOR, "released", "release", "log")
    story += everywhere(STEWARD, "budget")
    story += at(RESEARCHER, "result")
    story += at(IT, "old-ledger", place="north")
    story += at(COORDINATOR, "rotate")
    story += at(STEWARD, "withdraw", "verify", place="north")
    story += at(IT, "passphrase", place="north")
    return story + at(COORDINATOR, "revoke", "backup")


@pytest.mark.slow
def test_the_guides_work_as_they_stand(tmp_path: Path) -> None:
    prepare(tmp_path)
    with Player(
        tmp_path, GUIDES, environment(tmp_path), substitutions(), check_part, check_units
    ) as player:
        for guide, step, place, about in turns():
            player.play(guide, step, place, about=about)


def test_every_step_has_its_turn_and_in_the_guide_s_order() -> None:
    for guide in (RESEARCHER, COORDINATOR, IT, STEWARD):
        played = [step for name, step, place, _ in turns() if name == guide and place != "south"]
        once = list(dict.fromkeys(played))
        assert once == list(steps(GUIDES / f"{guide}.md")), guide


def test_every_command_shown_anywhere_is_followed() -> None:
    """No command hides in a block that the player does not read."""
    for page in GUIDES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        shown = len(re.findall(r"^\$ ", text, flags=re.M))
        blocks = [piece for step in steps(page).values() for piece in step]
        assert shown == sum(len(commands(p.text)) for p in blocks if p.kind == "console"), page
        assert len(re.findall(r"^```", text, flags=re.M)) == 2 * sum(bool(p.text) for p in blocks)


def test_every_option_named_in_passing_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """Options and commands in the text between the blocks, too."""
    helps = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for page in GUIDES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        for option in re.findall(r"`(--[a-z-]+)", prose):
            assert re.search(rf"^\s+(-\w, )?{option}\b", helps, flags=re.M), (
                f"{page.name}: {option}"
            )
        for words in re.findall(r"`fedward ((?:server|client) [a-z-]+)", prose):
            assert main([*words.split(), "--help"]) == 0, f"{page.name}: fedward {words}"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("made … now", "made it now\n", True),
        ("made … now", "made it later\n", False),
        ("a\n…\nz", "a\nb\nc\nz\n", True),
        ("a\n…\nz", "a\nz\n", True),
        ("a\n…\nz", "a\nb\n", False),
        ("a", "a\nb\n", False),
        ("a.c", "abc\n", False),
        ("a", "  a\n", False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, same: bool) -> None:
    assert as_shown(shown, printed) is same


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```console\n$ fedward study chek x.toml\n```", "ends with 2"),
        ("```console\n$ fedward --version\nfedward 0.0.0\n```", "but prints"),
        ("```console\n$ fedward --version\nerror: …\n```", "ends with 0"),
        ("```console until\n$ fedward client init --dir x --site x\n```", "more than look"),
        ("```python\nprint()\n```", "nobody knows"),
        ("```toml part=server.toml\n[server]\nhots = 'x'\n```", "hots"),
        ("```sh systemd\nsystemctl enable fedward-sever\n```", "fedward-sever"),
    ],
)
def test_a_guide_that_is_wrong_is_noticed(tmp_path: Path, block: str, complaint: str) -> None:
    (tmp_path / "page.md").write_text(f"<!-- step: only -->\n{block}\n", encoding="utf-8")
    part, unit = check_part, check_units
    with Player(
        tmp_path, tmp_path, environment(tmp_path), lambda text, _: text, part, unit
    ) as player:
        player.place("here").joinpath("server.toml").write_text(
            '[server]\nconsortium = "C"\nhost = "h"\n'
        )
        with pytest.raises(NotAsShownError, match=complaint):
            player.play("page", "only", "here")


# --- the world that the guides presuppose ---------------------------------------------------------


def prepare(folder: Path) -> None:
    """What people have before they begin: tables, and a stick."""
    (folder / COORDINATOR / "stick").mkdir(parents=True)
    (folder / RESEARCHER).mkdir()
    write_public(folder / RESEARCHER / "public.csv")
    for seed, place in enumerate(HOSPITALS, start=1):
        (folder / place).mkdir()
        write_local(folder / place / "patients.csv", seed)


def draw(patients: int, seed: int) -> list[tuple[int, float, int, bool]]:
    """Age, creatinine, smoking (0 to 2) and death of made-up patients."""
    source = np.random.default_rng(seed)
    age = source.integers(30, 95, patients)
    creatinine = np.round(source.gamma(4.0, 0.35, patients) + 0.2, 2)
    risk = 1 / (1 + np.exp(-((age - 68) / 7 + (creatinine - 1.5) * 1.5)))
    died = source.random(patients) < risk
    smoking = source.integers(0, 3, patients)
    return list(
        zip(age.tolist(), creatinine.tolist(), smoking.tolist(), died.tolist(), strict=True)
    )


def write_public(path: Path) -> None:
    """The researcher's table, in the words of the study."""
    lines = ["patient_id,age,creatinine,smoking,died"]
    smoker, dead = ("never", "former", "current"), ("no", "yes")
    lines += [
        f"p{i},{age},{creatinine},{smoker[smoking]},{dead[died]}"
        for i, (age, creatinine, smoking, died) in enumerate(draw(1000, 0))
    ]
    path.write_text("\n".join(lines) + "\n")


def write_local(path: Path, seed: int) -> None:
    """A hospital's table, in its own words and units."""
    lines = ["patient_no;AGE;CREA_UMOL;SMOKER;OUTCOME"]
    lines += [
        f"{seed}{i:05};{age};{round(creatinine * 88.4)};{'NFC'[smoking]};{int(died)}"
        for i, (age, creatinine, smoking, died) in enumerate(draw(400, seed))
    ]
    path.write_text("\n".join(lines) + "\n")


def environment(folder: Path) -> dict[str, str]:
    """A shell of somebody who has fedward installed."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def substitutions() -> Any:
    """See the top of this file."""
    port = str(free_port())
    monitoring = {place: str(free_port()) for place in HOSPITALS}

    def substitute(text: str, place: str) -> str:
        text = text.replace("fl.example.org", "localhost").replace("8440", port)
        if place in HOSPITALS:
            text = text.replace("9441", monitoring[place]).replace("north", place)
        return text

    return substitute


def check_part(name: str, text: str, here: Path) -> None:
    """The keys of a part of a settings file are keys of the whole."""
    path = here / name
    whole = tomllib.loads(path.read_text(encoding="utf-8"))
    for section, keys in tomllib.loads(text).items():
        whole.setdefault(section, {}).update(keys)
    try:
        SETTINGS[path.name].model_validate(whole)
    except ValueError as error:
        raise NotAsShownError(str(error)) from error


def check_units(place: str, text: str, here: Path) -> None:
    """Units are there under the names that are enabled, started or followed."""
    del place, here
    for name in re.findall(r"\bfedward-[a-z]+@?", text):
        if not (UNITS / f"{name}.service").is_file():
            raise NotAsShownError(f"there is no unit {name}.service in deploy/systemd")
