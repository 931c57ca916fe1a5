"""Which runs will ask for nothing more, from what the server says of each study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Told = Mapping[str, Mapping[str, str]]
"""By hash of a study: its state, our choice there, its latest run; `daemon.desk.Desk.fetch`."""
RunOf = tuple[str, str]
"""Hash of a study, and name of a run of it."""
_GO_ON = ("running", "evaluating")


def ended(told: Told, runs: Iterable[RunOf]) -> list[RunOf]:
    """Runs that ask for nothing now; of those that failed or were stopped, one may be resumed.

    >>> ended({"5f": {"state": "failed", "run": "heart-1"}}, [("5f", "heart-1"), ("6e", "lung-1")])
    [('5f', 'heart-1'), ('6e', 'lung-1')]
    """
    return [
        (study, run)
        for study, run in runs
        if over(told, (study, run)) or _says(told, study, run) not in ("", *_GO_ON)
    ]


def over(told: Told, run: RunOf) -> bool:
    """Whether a run is over for good: its study is, or the study has another run by now.

    A study of which the server names no run yet may have begun one meanwhile.
    """
    study, name = run
    return study not in told or told[study]["run"] not in ("", name)


def _says(told: Told, study: str, run: str) -> str:
    """State of a study, if what was said is about this run; else nothing."""
    return told[study]["state"] if told[study]["run"] == run else ""
