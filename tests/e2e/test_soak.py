"""A day and a half of a federation in minutes: certificates, roster, keys and versions change while
it works; nothing grows that should not, and no round stands still.

How time is compressed, and what is done when, is in `soak.py`. `FEDWARD_SOAK_S` makes it longer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .growth import LEAK_KB, growth, with_leak
from .soak import LONGEST, NEWER

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("FEDWARD_SOAK_S", "200"))
HOURS = 40.0
"""That pass: a certificate for a day is renewed after 15.7 and after 31.3 of them."""
HERE = Path(__file__).parent
MORE = 10
"""Files that may be open later and not before: a registry's connection, of which there is a bounded
number, has two, and is made when one more is needed at once. A leak would be of hundreds."""
STILL_S = 60.0
"""Deadline of a round."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the soak saw."""
    folder = tmp_path_factory.mktemp("soak")
    compiler = shutil.which("cc")
    if compiler is None:
        reason = "there is no C compiler for a time of day that can be put forward"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    library, ahead = folder / "time_of_day.so", folder / "ahead"
    source = HERE / "time_of_day.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    ahead.write_bytes(bytes(8))
    (folder / "soak").mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "LD_PRELOAD": str(library),
        "FEDWARD_AHEAD": str(ahead),
    }
    done = subprocess.run(
        [sys.executable, HERE / "soak.py", folder / "soak", str(SECONDS), str(HOURS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=(LONGEST + 1.0) * SECONDS + 300.0,
        check=False,
    )
    found: dict[str, Any] = {}
    if (folder / "soak" / "report.json").exists():
        found = json.loads((folder / "soak" / "report.json").read_text())
    assert done.returncode == 0, done.stderr[-3000:] + json.dumps(found.get("output"), indent=1)
    return found


def quiet(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples after everything was restarted that is, and has warmed up."""
    found: list[dict[str, Any]] = report["samples"][report["said"]["quiet from"] :]
    return found


def series(report: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Rounds and resident bytes of each process that was there all the quiet time."""
    samples = quiet(report)
    names = set.intersection(*(set(sample["processes"]) for sample in samples))
    return {
        name: (
            [float(sample["round"]) for sample in samples],
            [float(sample["processes"][name]["rss"]) for sample in samples],
        )
        for name in names
    }


def test_every_certificate_is_renewed_twice(report: dict[str, Any]) -> None:
    """While running, the server's too; nobody was shut out for an old one."""
    assert report["samples"][-1]["ahead_h"] >= 24.0
    renewed = report["renewed"]
    there = {name for name in renewed if name not in report["revoked"]} - {"server", "coordinator"}
    # The one that came late was issued its certificate then; the server got one with its new key.
    assert renewed["coordinator"] >= 1
    assert sorted(renewed[name] for name in there)[-2:] == [2, 2]
    assert len(there) == 3
    assert min(renewed[name] for name in there) >= 1


def test_all_that_is_done_has_its_effect(report: dict[str, Any]) -> None:
    """Enrolled, upgraded, rotated, revoked; studies come and go; logs verify."""
    done = [event["what"] for event in report["events"]]
    assert {"enrol", "upgrade_daemon", "upgrade_server", "rotate", "revoke"} <= set(done)
    assert report["said"]["upgraded site"] == NEWER
    assert set(report["verified"].values()) == {"ok"}
    runs = {run["name"]: run for run in report["runs"]}
    assert runs.pop("long")["state"] == "stopped"
    assert len(runs) >= 2
    assert {run["state"] for run in runs.values()} == {"released"}


def test_another_version_of_the_link_is_refused_in_words(report: dict[str, Any]) -> None:
    """By both sides, whichever is the newer."""
    said = report["said"]
    assert "speaks version 1 of the link, this is version 2" in said["strange daemon, at the site"]
    (at_server,) = said["strange daemon, at the server"]
    assert "speaks version 2 of the link, the server version 1" in at_server
    assert "upgrade fedward at the server" in at_server
    at_sites = [text for what, text in said.items() if what.startswith("strange server, at hosp")]
    assert len(at_sites) >= 3
    assert all("speaks version 2 of the link, this is version 1" in text for text in at_sites)
    (at_server,) = said["strange server, at the server"]
    assert "upgrade fedward at the site" in at_server


def test_no_round_stands_still(report: dict[str, Any]) -> None:
    """Between two rounds there is never more than a round's deadline, but for restarts."""
    samples = [sample for sample in report["samples"] if sample["round"]]
    changes = [samples[0]["at_s"]]
    changes += [b["at_s"] for a, b in pairwise(samples) if b["round"] != a["round"]]
    stood = max(b - a for a, b in pairwise(changes))
    changes = [s["at_s"] for a, s in pairwise(quiet(report)) if s["round"] != a["round"]]
    quiet_stood = max(b - a for a, b in pairwise(changes))
    sys.stdout.write(f"\n{samples[-1]['round']} rounds, the longest wait {stood:.1f} s\n")
    sys.stdout.write(f"when nothing is restarted: {quiet_stood:.1f} s\n")
    assert quiet_stood < STILL_S
    assert stood < 2 * STILL_S  # a round that was open when the service ended, and the next
    assert samples[-1]["round"] > 300


def test_memory_does_not_grow(report: dict[str, Any]) -> None:
    """Of server, daemons and training processes; and a leak of 10 kB per round would be seen."""
    found = series(report)
    assert {name.split()[0] for name in found} >= {"server", "hospital-1", "hospital-2", "worker"}
    for name, (rounds, resident) in sorted(found.items()):
        sys.stdout.write(f"\n{name}: {growth(rounds, resident)}")
    for name, (rounds, resident) in found.items():
        assert not growth(rounds, resident).leaks, f"{name}: {growth(rounds, resident)}"
        leaking = with_leak(rounds, resident)
        assert leaking.leaks, f"{name}: too much noise to see a leak of {LEAK_KB} kB: {leaking}"


def test_files_threads_and_processes_do_not_grow(report: dict[str, Any]) -> None:
    """No more at the end than in the middle, when neither replies nor other runs are open."""
    samples = quiet(report)
    half = len(samples) // 2
    for name in series(report):
        for what in ("files", "threads"):
            counts = [sample["processes"][name][what] for sample in samples]
            assert min(counts[half:]) <= min(counts[:half]) + MORE, f"{name}: {what}"
    assert max(len(s["processes"]) for s in samples) <= 4 + 3 * 3 + 3


def test_what_is_kept_on_disk_is_bounded_or_grows_with_the_rounds(report: dict[str, Any]) -> None:
    """Spool, tasks, inbox, outbox and checkpoints are emptied; logs grow by the same each round."""
    most: dict[str, int] = {}
    for sample in quiet(report):
        for what, count in sample["files"].items():
            most[what] = max(most.get(what, 0), count)
    assert most["checkpoints"] <= 4  # two, one that is being written, and the history
    assert most["tasks"] <= 4
    assert most["spool"] <= 30
    assert most["inbox"] <= 30
    assert most["outbox"] <= 30
    samples = quiet(report)
    middle = samples[len(samples) // 2]
    for what, end in samples[-1]["sizes"].items():
        before, later = (
            (b["sizes"][what] - a["sizes"][what]) / max(b["round"] - a["round"], 1)
            for a, b in ((samples[0], middle), (middle, samples[-1]))
        )
        assert later <= 2.0 * before + 500.0, f"{what}, {end} bytes: {before:.0f} → {later:.0f}"
