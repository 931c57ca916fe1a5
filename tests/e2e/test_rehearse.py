"""`fedward rehearse`: one command, and the real federation has been played."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "breast-cancer" / "study.toml"
IMAGES = """
[study]
name = "pictures"
title = "Bright or dark"
purpose = "To rehearse"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "bright"
labels = ["no", "yes"]
[data]
modality = "image"
[preprocess]
standardise = "federated"
[preprocess.image]
height = 16
width = 16
[model]
name = "cnn"
[training]
rounds = 2
local_steps = 4
batch_size = 16
learning_rate = 0.05
[algorithm]
name = "fedavgm"
[privacy]
mode = "none"
[aggregation]
min_sites = 2
"""


def rehearse(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedward.common", "rehearse", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_pictures_with_kills_come_to_the_simulation_s_model(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(IMAGES)
    out = tmp_path / "out"
    done = rehearse(study, "--sites", "2", "--chaos", "3", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fine"]
    assert found["state"] == "released"
    assert found["difference"] <= 1e-6
    # Each kind of kill happened, and before the last round was done.
    kills = [re.search(r"after round ([01]): killed the (\w+)", kill) for kill in found["kills"]]
    assert sorted(kill[2] for kill in kills if kill) == ["daemon", "service", "training"]
    assert len(kills) == 3
    assert set(found["hospitals"].values()) == {"made"}
    assert set(found["verified"].values()) == {"ok"}
    assert (out / "consortium" / "runs" / found["run"] / "release" / "RELEASE.json").is_file()


@pytest.mark.slow
def test_a_private_study_costs_the_same_everywhere(tmp_path: Path) -> None:
    done = rehearse(EXAMPLE, "--sites", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    spent = set(found["epsilon"].values())
    assert len(spent) == 1
    assert 1.85 < spent.pop() <= 1.9
    assert found["difference"] is None
    assert not Path(found["folder"]).exists()  # nothing is kept without --out


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    done = rehearse(EXAMPLE, "--out", tmp_path)
    assert done.returncode == 10
    assert "is not empty" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep"
