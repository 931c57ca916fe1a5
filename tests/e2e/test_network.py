"""A federation over a bad line: 100 ms each way and 1 % of the packets lost, each way.

Server and hospitals are in network namespaces with nothing but that line between them. Shown are a
20 MB model that gets through its rounds, and what a hospital's firewall has to let pass: one
outgoing connection to one port.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.wan import HOSPITAL, SERVER, Unavailable, Wan

from fedward.common.study import load_study
from fedward.simulations.rehearsal.federation import Federation, Machines
from fedward.simulations.rehearsal.hospitals import prepare_hospitals

pytestmark = pytest.mark.slow

CONGESTION = os.environ.get("FEDWARD_CONGESTION", "bbr")
"""How both machines send. What finds each loss a sign of a full line, as `reno` and cubic do, sends
100 kB/s over this one: the same rounds take many minutes, and CI has no time for that."""
WITHIN_S = 150.0 if CONGESTION == "bbr" else 3000.0
STUDY = """
[study]
name = "far"
title = "Far away"
purpose = "Carry 20 MB"
contact = "nobody@example.org"

[task]
kind = "binary"
target = "died"
labels = ["no", "yes"]

[data]
modality = "tabular"

[[data.features]]
name = "age"
unit = "years"
min = 0.0
max = 110.0

[preprocess]
standardise = "bounds"

[model]
name = "mlp"
hidden = [2236, 2236]

[training]
rounds = 2
local_steps = 1
batch_size = 8
learning_rate = 0.01
seed = 1

[algorithm]
name = "fedavg"

[privacy]
mode = "none"

[aggregation]
deadline_s = DEADLINE_S

[evaluation]
bootstrap = 50
"""


@contextmanager
def far_away(congestion: str) -> Iterator[Wan]:
    """The line; where it cannot be had, the test is skipped, and fails where CI says that it is."""
    try:
        with Wan(delay_s=0.1, loss=0.01, congestion=congestion) as wan:
            yield wan
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def connections(wan: Wan, *options: str) -> list[tuple[str, str]]:
    """What `ss` lists on the hospitals' machine: our end, and the other."""
    command = [*wan.inside(wan.hospital), "ss", "-Hntu", *options]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mapped = re.compile(r"\[::ffff:([\d.]+)\]")  # an IPv4 address, as a socket for both says it
    # protocol, state, two queues, our end, the other
    ends = (line.split()[4:6] for line in mapped.sub(r"\1", found).splitlines())
    return [(ours, theirs) for ours, theirs in ends]


def output(federation: Federation) -> str:
    """All that the services wrote, for a failed test."""
    return "\n".join(path.read_text() for path in (federation.folder / "output").iterdir())


def test_a_20_mb_model_gets_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rounds of two hospitals, in bounded time, over one outgoing connection each."""
    file = tmp_path / "study.toml"
    file.write_text(STUDY.replace("DEADLINE_S", str(WITHIN_S)))
    (tmp_path / "data").mkdir()
    hospitals = prepare_hospitals(load_study(file), tmp_path, tmp_path / "data", sites=2)
    with far_away(CONGESTION) as wan:
        machines = Machines(SERVER, tuple(wan.inside(wan.server)), tuple(wan.inside(wan.hospital)))
        federation = Federation(file, hospitals, tmp_path, machines=machines)
        most, seen, moments = 0, set[tuple[str, str]](), dict[int, float]()

        def watch(run: dict[str, object]) -> None:
            nonlocal most
            moments.setdefault(int(str(run["round"])), time.monotonic() - begun)
            there = connections(wan, "state", "connected")
            most = max(most, len(there))
            seen.update(there)
            assert connections(wan, "-l") == [], "a hospital listens"

        try:
            federation.found()
            federation.start()
            federation.submit()
            for hospital in hospitals:
                federation.approve(hospital.name)
            begun = time.monotonic()
            ended = federation.wait(WITHIN_S, watch=watch)
            said = output(federation)
            assert (ended["state"], ended["reason"], ended["round"]) == ("released", "", 2), said
        finally:
            federation.stop()
    model = next(federation.release(str(ended["run"])).glob("**/*.safetensors"))
    assert model.stat().st_size > 20e6
    assert {theirs for _, theirs in seen} == {f"{SERVER}:{federation.port}"}
    assert {ours.rpartition(":")[0] for ours, _ in seen} == {HOSPITAL}
    assert most == len(hospitals)
    assert said.count("the link is up") == len(hospitals), f"a connection was lost:\n{said}"
    with capsys.disabled():
        spent = ", ".join(f"{number}: {at_s:.0f} s" for number, at_s in moments.items())
        sys.stdout.write(f"\n{CONGESTION}: rounds done after {spent}; {wan.counted}\n")
