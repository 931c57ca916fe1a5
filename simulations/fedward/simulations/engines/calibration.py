"""What a site costs one after another and as one program, tried out on this machine and kept.

A few of the run's own sites are trained once each way, and the times are kept in a folder of the
user (`FEDWARD_CACHE`, or `fedward` in the user's caches), so that the next run of the same kind on
the same machine is computed the same way. Nothing of what was trained is kept, and no privacy is
spent: what a simulated site learns here is thrown away before anybody has seen it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedward.client.site import Site
from fedward.common.errors import FedwardError
from fedward.common.files import write_atomic
from fedward.common.models.state import get_weights
from fedward.common.preprocess import Transform
from fedward.common.version import versions
from fedward.simulations.engines.executors import Executor, Looped, Round, Stacked
from fedward.simulations.engines.results import Layout, Results

SAMPLE = 8
"""Sites that are tried, spread evenly over all."""
WORTH = 20
"""Times as much work as is tried a run must have: else it is over sooner."""
_ROUND = Round(1, 0.0, None)

Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Paces(BaseModel):
    """Seconds of a site in a round, in one process.

    Attributes:
        looped: one site after another.
        stacked: many sites as one program.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    looped: Seconds
    stacked: Seconds


def worthwhile(sites: Sequence[Site]) -> bool:
    """Whether a run over these sites is long enough to try out how to compute it."""
    rounds = sites[0].study.training.rounds
    return len(sites) * rounds >= WORTH * min(SAMPLE, len(sites))


def paces(sites: Sequence[Site], transform: Transform, module: torch.nn.Module) -> Paces:
    """The kept paces of this kind of work on this machine; measured now if there are none.

    Args:
        sites: all of the run.
        transform: the frozen preprocessing.
        module: the study's model, of layers that can be stacked.
    """
    picked = np.linspace(0, len(sites) - 1, min(SAMPLE, len(sites))).astype(int)
    sample = [sites[index] for index in picked]
    file = _file(_kind(sample, module))
    found = _read(file)
    if found is None:
        found = _measure(sample, transform, module)
        with suppress(FedwardError, OSError):  # measured again next time
            if file is not None:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomic(file, found.model_dump_json())
    return found


def _measure(sample: Sequence[Site], transform: Transform, module: torch.nn.Module) -> Paces:
    weights = get_weights(module)  # trying changes the module

    def seconds(make: Callable[[Sequence[Site], Transform], Executor]) -> float:
        executor, everybody = make(sample, transform), range(len(sample))
        results = Results(len(sample), Layout.of(weights, executor.turned), keep=False)
        results.before[:] = results.layout.vector(weights)
        results.share[:] = 1 / len(sample)
        executor.train(_ROUND, everybody[:1], results, 0)  # the first finds everything cold
        begun = time.perf_counter()
        executor.train(_ROUND, everybody, results, 0)
        return (time.perf_counter() - begun) / len(sample)

    with _one_thread():
        return Paces(looped=seconds(Looped), stacked=seconds(Stacked))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute as workers do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _kind(sample: Sequence[Site], module: torch.nn.Module) -> str:
    """What decides how long a site takes: versions, machine, model, training, numbers of rows."""
    training = sample[0].study.training.model_dump(mode="json", exclude={"rounds", "seed"})
    return json.dumps(
        {
            "versions": versions(),
            "machine": [platform.machine(), platform.processor(), os.cpu_count()],
            "model": str(module),
            "training": training,
            "private": [
                None if site.plan is None else site.plan.steps_per_round for site in sample
            ],
            "rows": [int(np.log2(max(1, site.rows)) * 4) for site in sample],
        },
        sort_keys=True,
    )


def _file(kind: str) -> Path | None:
    """Where the paces of a kind are kept; None if this user has no place for caches."""
    name = hashlib.sha256(kind.encode()).hexdigest()[:32]
    if chosen := os.environ.get("FEDWARD_CACHE"):
        return Path(chosen) / f"{name}.json"
    with suppress(RuntimeError):  # a user without a home
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(caches) / "fedward" / f"{name}.json"
    return None


def _read(file: Path | None) -> Paces | None:
    if file is None:
        return None
    try:
        return Paces.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
