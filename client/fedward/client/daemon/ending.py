"""Which runs will ask for nothing more, from what the server says of each study; put on record.

A run is **paused** when the server says that it failed or was stopped: what was set aside for it is
free, and it may be resumed. A run is **over** when its study goes on no more or has another run by
now: an honest server resumes only the newest run of a study, and nothing after the release. That is
for good. What a site remembers of a run's rounds beside the ledger is deleted when it is over, so
it must not come back: a server that could name one run, then another, then the first again, would
have a study without differential privacy trained as often as it likes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fedward.client.daemon.account import Account

Told = Mapping[str, Mapping[str, str]]
"""By hash of a study: its state, our choice there, its latest run; `daemon.desk.Desk.fetch`."""
RunOf = tuple[str, str]
"""Hash of a study, and name of a run of it."""
_MAY_ASK = ("", "running", "evaluating")


def over(told: Told, run: RunOf) -> bool:
    """Whether a run is over for good: its study is, or the study has another run by now.

    A study of which the server names no run yet may have begun one meanwhile.

    >>> over({"5f": {"state": "failed", "run": "heart-2"}}, ("5f", "heart-1"))
    True
    """
    study, name = run
    return (
        study not in told
        or told[study]["run"] not in ("", name)
        or _says(told, study, name) == "released"
    )


def paused(told: Told, run: RunOf) -> bool:
    """Whether a run asks for nothing now, but may be resumed.

    >>> paused({"5f": {"state": "failed", "run": "heart-2"}}, ("5f", "heart-2"))
    True
    """
    return not over(told, run) and _says(told, *run) not in _MAY_ASK


def settle(account: Account, told: Told, runs: Collection[RunOf]) -> frozenset[RunOf]:
    """Put on record which runs are over and which are paused.

    Args:
        account: the ledger.
        told: what the server says.
        runs: admitted runs that it knew of when it said so: of others its words tell nothing.

    Returns:
        Runs that something was set aside for until now.
    """
    going = account.open_runs()
    for study, run in set(runs) - account.over_runs():
        if over(told, (study, run)):
            account.end_run(study, run, "over", for_good=True)
        elif (study, run) in going and paused(told, (study, run)):
            account.end_run(study, run, "paused")
    return going - account.open_runs()


def _says(told: Told, study: str, run: str) -> str:
    """State of a study, if what was said is about this run; else nothing."""
    return told[study]["state"] if told[study]["run"] == run else ""
