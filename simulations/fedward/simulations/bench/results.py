"""`bench.json`: what was measured on which machine.

The classes below *are* the format: unknown keys are errors.

    >>> Spread.of([3.0, 1.0, 2.0])
    Spread(median=2.0, least=1.0, most=3.0)
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from fedward.common.errors import StateError
from fedward.common.files import read_bytes
from fedward.common.validation import explain
from fedward.common.version import version, versions
from fedward.simulations.bench.rivals import PRODUCT
from fedward.simulations.bench.workloads import Workload
from fedward.simulations.report.results import Count, Engine, Fraction, Part

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Spread(Part):
    """Median, smallest and largest of what the turns gave."""

    median: Positive
    least: Positive
    most: Positive

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


class Pace(Part):
    """How long a program takes for a round, in seconds, and how good its model is in the end.

    A turn gives its median round; the first round of a run does not count. `accuracy` is on the
    held-out rows, the mean over turns.
    """

    round_s: Spread
    accuracy: Fraction


class Task(Part):
    """What was trained: see `workloads.Workload`."""

    name: str
    model: dict[str, Any]
    sites: Count
    rows: Count
    rounds: Count
    batch_size: Count
    epochs: Count
    learning_rate: Positive
    private: bool

    @classmethod
    def of(cls, load: Workload) -> Self:
        """What is told of a workload."""
        return cls.model_validate({name: getattr(load, name) for name in cls.model_fields})


class Measured(Part):
    """One workload.

    `programs` has `fedward`, `bare` and the peers that were measured. A ratio in `ratios` says how
    many times as fast as that program fedward is: the other's median round by fedward's in the same
    turn. `all_rounds` is the same for the bare loop with fedward's mean over all rounds, of which
    the first prepares and the last evaluates. `aims` is what the ratios are meant to be on two
    cores. `first_round_s` and `whole_s` are fedward's seconds from the start of its process.
    `load` is how many processes waited for a processor when it ended, the mean of a minute.
    """

    task: Task
    engine: Engine
    turns: Annotated[int, Field(ge=1)]
    programs: dict[str, Pace]
    ratios: dict[str, Spread]
    all_rounds: Spread
    aims: dict[str, Positive]
    first_round_s: Spread
    whole_s: Spread
    load: Annotated[float, Field(ge=0.0)]

    @property
    def product(self) -> Pace:
        """Fedward's own pace."""
        return self.programs[PRODUCT]


class Machine(Part):
    """Where it was measured."""

    processors: Annotated[int, Field(ge=1)]
    system: str
    python: str
    torch: str

    @classmethod
    def here(cls, processors: int) -> Self:
        """This machine, of which a process may use so many processors."""
        found = versions()
        return cls(
            processors=processors,
            system=f"{platform.system()} {platform.machine()}",
            python=found["python"],
            torch=found["torch"],
        )


class Bench(Part):
    """All that a `fedward bench` found."""

    format: Literal[1] = 1
    fedward: str = Field(default_factory=version)
    machine: Machine
    measured: tuple[Measured, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `bench.json`.

        Raises:
            StateError: it is missing, is no JSON or has another format.
        """
        data = read_bytes(path, error=StateError)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            problem, hint = explain(error, cls)
            raise StateError(
                f"{path.name} is not the JSON of a `fedward bench` of this version: {problem}",
                hint=hint,
            ) from error

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=1) + "\n"
