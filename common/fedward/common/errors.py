"""Every way fedward refuses, as one tree.

    FedwardError                  exit code
    ├── StudyError                3   the study file is missing, malformed or contradicts itself
    ├── SiteConfigError           4   a settings file is missing, wrong, or does not fit the study
    ├── DataError                 5   a site's data cannot be used as the study demands
    ├── PrivacyError              6   the privacy promise cannot be kept, so nothing is trained
    │   └── RoundSpentError       16  this was paid for at a site before and is not done again
    ├── TrainingError             7   training cannot go on (diverged, produced NaN)
    ├── RoundError                8   the federation cannot go on (too few sites, refused update)
    ├── ModelError                9   a model bundle is missing, damaged or does not fit the input
    ├── OutputError               10  results cannot be written (full disk, no permission)
    ├── MissingExtraError         11  a part of fedward that this command needs is not installed
    ├── IdentityError             12  a key, certificate, roster or signature cannot be trusted
    ├── LinkError                 13  the other side cannot be reached, or broke the link's rules
    ├── PolicyError               14  the site's policy or its stewards do not allow it
    ├── StateError                15  what is asked for does not fit the state it is in
    ├── SpeedError                17  a simulation is slower than its baseline allows
    └── Interrupted               130 stopped by Ctrl-C; what was finished is checkpointed

Exit code 0 is success, 1 a defect in fedward itself, 2 a wrong command line.

A message is one line that says what is wrong, where, and what to do next. It never contains
anything private: no value of a patient, no exact count below a minimum cell, no exception text of
another library that might quote data.

    >>> str(StudyError("[privacy] epsilon is missing", hint="add epsilon = 3.0"))
    '[privacy] epsilon is missing: add epsilon = 3.0'
    >>> StudyError("x", hint="y").exit_code
    3
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar


class FedwardError(Exception):
    """A refusal that the user can act on.

    Attributes:
        exit_code: what the `fedward` command exits with.
        hint: what to do next, in the imperative.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(f"{problem}: {hint}")
        self.problem = problem
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keep errors picklable: worker processes hand them back."""
        return _rebuild, (type(self), self.problem, self.hint)


def _rebuild(kind: type[FedwardError], problem: str, hint: str) -> FedwardError:
    return kind(problem, hint=hint)


class StudyError(FedwardError):
    """The study file is missing, malformed or contradicts itself."""

    exit_code = 3


class SiteConfigError(FedwardError):
    """A settings file is missing, wrong, or does not fit the study."""

    exit_code = 4


class DataError(FedwardError):
    """A site's data cannot be used as the study demands."""

    exit_code = 5


class PrivacyError(FedwardError):
    """The privacy promise cannot be kept, so nothing is trained."""

    exit_code = 6


class RoundSpentError(PrivacyError):
    """This was paid for at a site before, and is not done again there."""

    exit_code = 16


class TrainingError(FedwardError):
    """Training cannot go on: it diverged or gave values that are not finite."""

    exit_code = 7


class RoundError(FedwardError):
    """The federation cannot go on: too few sites, or an update was refused."""

    exit_code = 8


class ModelError(FedwardError):
    """A model bundle is missing, damaged or does not fit the input."""

    exit_code = 9


class OutputError(FedwardError):
    """Results cannot be written."""

    exit_code = 10


class MissingExtraError(FedwardError):
    """A part of fedward that this command needs is not installed."""

    exit_code = 11


class IdentityError(FedwardError):
    """A key, certificate, roster or signature cannot be trusted."""

    exit_code = 12


class LinkError(FedwardError):
    """The other side cannot be reached, or broke the link's rules."""

    exit_code = 13


class PolicyError(FedwardError):
    """The site's policy or its stewards do not allow it."""

    exit_code = 14


class StateError(FedwardError):
    """What is asked for does not fit the state of a site, study or run."""

    exit_code = 15


class SpeedError(FedwardError):
    """A simulation is slower, beside other programs, than its baseline allows."""

    exit_code = 17


class Interrupted(FedwardError):  # noqa: N818  (an event, not a fault)
    """Stopped by the user; everything finished until then is kept."""

    exit_code = 130


def error_for_exit_code(code: int) -> type[FedwardError] | None:
    """The class with an exit code, so that a refusal keeps its kind when it crosses the wire.

    >>> error_for_exit_code(6).__name__
    'PrivacyError'
    """
    return next((kind for kind in error_classes() if kind.exit_code == code), None)


def error_classes(root: type[FedwardError] = FedwardError) -> Iterator[type[FedwardError]]:
    """Every refusal of fedward, in the order of the tree.

    Modules may refine one for themselves; that changes no exit code and is not listed.
    """
    for kind in root.__subclasses__():
        if kind.__module__ == __name__:
            yield kind
        yield from error_classes(kind)


def place_of(error: BaseException) -> str:
    """Our own innermost file and line of a defect, and no more: its text may quote data."""
    place = "at an unknown place"
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).startswith("fedward."):
            place = f"at {Path(frame.f_code.co_filename).name}, line {line}"
    return place
