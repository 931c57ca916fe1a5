"""What may become of a study: which state follows which. Pure; the registry asks it every time.

    offered ⇄ approved → running ⇄ evaluating → released
                            ↘        ↙   ↘
                              stopped     failed     (both can be resumed: → running)

An offer that nobody has begun can be stopped too. What is released stays released.

    >>> follow(State.APPROVED, State.RUNNING)
    <State.RUNNING: 'running'>
    >>> State.RELEASED.final
    True
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

from fedward.common.errors import StateError


class State(StrEnum):
    """Where a study, or its run, stands."""

    OFFERED = "offered"
    """Signed and shown to the invited sites; too few have approved."""
    APPROVED = "approved"
    """Enough sites have approved; a run can be started."""
    RUNNING = "running"
    """Rounds of training are being done, or will be when enough sites are there."""
    EVALUATING = "evaluating"
    """The sites judge a model; after the last round, until it is released."""
    RELEASED = "released"
    """The model is on disk with its evidence."""
    FAILED = "failed"
    """It could not go on; the reason is kept, and so is the last checkpoint."""
    STOPPED = "stopped"
    """The coordinator stopped it; it can be resumed from the last checkpoint."""

    @property
    def active(self) -> bool:
        """Whether the service works on it."""
        return self in (State.RUNNING, State.EVALUATING)

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return not NEXT[self]


class Choice(StrEnum):
    """What a site can answer to an offer."""

    APPROVE = "approve"
    REFUSE = "refuse"
    WITHDRAW = "withdraw"


NEXT: Mapping[State, frozenset[State]] = {
    State.OFFERED: frozenset({State.APPROVED, State.STOPPED}),
    State.APPROVED: frozenset({State.OFFERED, State.RUNNING, State.STOPPED}),
    State.RUNNING: frozenset({State.EVALUATING, State.FAILED, State.STOPPED}),
    State.EVALUATING: frozenset({State.RUNNING, State.RELEASED, State.FAILED, State.STOPPED}),
    State.RELEASED: frozenset(),
    State.FAILED: frozenset({State.RUNNING}),
    State.STOPPED: frozenset({State.RUNNING}),
}
"""What may follow each state."""

_CHOICES: Mapping[Choice | None, frozenset[Choice]] = {
    None: frozenset({Choice.APPROVE, Choice.REFUSE}),
    Choice.APPROVE: frozenset({Choice.WITHDRAW}),
    Choice.REFUSE: frozenset({Choice.APPROVE}),
    Choice.WITHDRAW: frozenset({Choice.APPROVE}),
}


def follow(now: State, wanted: State) -> State:
    """The state after a step.

    Raises:
        StateError: this step does not exist.
    """
    if wanted in NEXT[now]:
        return wanted
    allowed = ", ".join(sorted(NEXT[now])) or "nothing"
    raise StateError(f"what is {now} cannot become {wanted}", hint=f"it can become: {allowed}")


def choose(before: Choice | None, wanted: Choice) -> Choice:
    """A site's answer after its earlier one; who approved can withdraw, all others can approve.

    Raises:
        StateError: this answer does not follow on the earlier one.
    """
    if wanted in _CHOICES[before]:
        return wanted
    said = {None: "has not answered", Choice.APPROVE: "approved", Choice.REFUSE: "refused"}
    raise StateError(
        f"a site that {said.get(before, 'withdrew')} cannot {wanted}",
        hint=f"it can: {', '.join(sorted(_CHOICES[before]))}",
    )


def meant(before: Choice | None, said: Choice) -> Choice:
    """What a site's words come to: who approved before and refuses now withdraws, and the like.

    A site may decide several times before the first of its words arrives here.

    >>> meant(Choice.APPROVE, Choice.REFUSE), meant(None, Choice.WITHDRAW)
    (<Choice.WITHDRAW: 'withdraw'>, <Choice.REFUSE: 'refuse'>)
    """
    if said is Choice.APPROVE:
        return said
    return Choice.WITHDRAW if before in (Choice.APPROVE, Choice.WITHDRAW) else Choice.REFUSE


def enough(approved: Collection[str], min_sites: int) -> State:
    """State of an offer that no run has begun."""
    return State.APPROVED if len(approved) >= min_sites else State.OFFERED


def ready(
    answers: Mapping[str, Choice | None], active: Collection[str], min_sites: int
) -> frozenset[str]:
    """Sites that a run starts with by itself; empty while it must wait.

    Args:
        answers: of every invited site, None for not yet.
        active: sites that the roster has as active.
        min_sites: of the study.

    Returns:
        The active sites that approved, once every invited active site has answered and they are
        enough.
    """
    there = {site: answer for site, answer in answers.items() if site in active}
    approved = frozenset(site for site, answer in there.items() if answer is Choice.APPROVE)
    if None in there.values() or len(approved) < max(1, min_sites):
        return frozenset()
    return approved
