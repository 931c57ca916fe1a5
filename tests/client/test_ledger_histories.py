"""Random histories of a ledger, broken off anywhere: it says what its raw rows say, and never less.

The oracle (`ledger_oracle.py`) reads the rows with plain SQL, enumerates people one by one, and
works ε out by a convolution of its own.
"""

from __future__ import annotations

import random
import runpy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fedward.client.ledger import Caps, Ledger, Members, Totals, report
from fedward.client.spending import Group
from fedward.common.errors import PrivacyError
from fedward.common.privacy.events import GaussianRelease, PrivacyEvent, SampledGaussian

oracle: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("ledger_oracle.py")))

HISTORIES = 200
BATCH = 10
DELTA = 1e-3
CAPS = Caps(epsilon_per_study=1.6, epsilon_total=1.8, delta=DELTA)
CLOSE_ENOUGH = 2e-4
CODE = "test"

ROUND = SampledGaussian(0.2, 2.0, 5)
SHORTER = SampledGaussian(0.1, 1.5, 4)
SUMS = GaussianRelease(5.0, 1, "statistics")
COUNTS = GaussianRelease(6.0, 1, "evaluation")
STUDIES: tuple[tuple[str, dict[str, tuple[PrivacyEvent, int]]], ...] = (
    # By group: what is released once, and how often.
    ("a" * 64, {"training": (ROUND, 3), "testing": (COUNTS, 1)}),
    ("b" * 64, {"training": (SHORTER, 2), "testing": (COUNTS, 2)}),
    ("c" * 64, {"training": (SUMS, 1), "testing": (COUNTS, 1)}),
)


def totals(parts: dict[str, tuple[PrivacyEvent, int]]) -> Totals:
    def times(event: PrivacyEvent, count: int) -> tuple[PrivacyEvent, ...]:
        if isinstance(event, SampledGaussian):
            return (replace(event, steps=event.steps * count),)
        return (replace(event, count=count),)

    return Totals(times(*parts["training"]), times(*parts["testing"]))


@dataclass
class History:
    """A ledger, what is done to it at random, and what must be true after everything."""

    path: Path
    dice: random.Random
    cohorts: list[Members] = field(default_factory=list)
    runs: list[tuple[str, dict[str, Any], str, str]] = field(default_factory=list)
    loose: list[int] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.path)

    def play(self, moves: int) -> None:
        acts = [self.add, self.admit, self.reserve, self.commit, self.finish, self.crash]
        self.add()
        self.admit()
        for _ in range(moves):
            act = self.dice.choices(acts, weights=[1, 4, 8, 4, 1, 2])[0]
            act()
            self.check(act.__name__)
        self.crash()
        self.check("the end")
        self.ledger.close()

    def add(self) -> None:
        """A cohort of some of twelve people; some cohorts have no identifiers."""
        if len(self.cohorts) >= 4:
            return
        by = self.dice.choice(["mrn", "mrn", "mrn", "", "study number"])
        chosen = self.dice.sample(range(12), self.dice.randint(2, 9))
        cut = self.dice.randint(1, len(chosen))
        names = [bytes([n]) * 32 for n in chosen]
        made = Members(by, "patient", frozenset(names[:cut]), frozenset(names[cut:]))
        self.ledger.add_cohort(made)
        self.cohorts.append(made)

    def admit(self) -> None:
        study, parts = self.dice.choice(STUDIES)
        members = self.dice.choice(self.cohorts)
        run = f"run-{len(self.runs)}"
        if self.runs and self.dice.random() < 0.2:
            study, parts, run, cohort = self.dice.choice(self.runs)
            members = next(one for one in self.cohorts if one.id == cohort)
        head = self.ledger.head
        try:
            self.ledger.admit(
                study,
                run,
                members.id,
                plan="d" * 64,
                totals=totals(parts),
                caps=CAPS,
                code=CODE,
            )
        except PrivacyError:
            assert self.ledger.head == head
            self.seen.add("refused")
            return
        if (study, parts, run, members.id) not in self.runs:
            self.runs.append((study, parts, run, members.id))
        self.seen.add("admitted")

    def reserve(self) -> None:
        if not self.runs:
            return
        study, parts, run, cohort = self.dice.choice(self.runs)
        group: Group = self.dice.choice(["training", "testing"])
        event, rounds = parts[group]
        head = self.ledger.head
        try:
            number = self.ledger.reserve(
                study,
                run,
                round_number=self.dice.randint(1, rounds + 1),
                group=group,
                event=event,
                cohort=cohort,
                plan="d" * 64,
                code=CODE,
            )
        except PrivacyError:
            assert self.ledger.head == head
            return
        self.loose.append(number)
        self.seen.add("reserved")

    def commit(self) -> None:
        if self.loose:
            number = self.loose.pop(self.dice.randrange(len(self.loose)))
            self.ledger.commit(number, f"{number:064x}")

    def finish(self) -> None:
        if self.runs:
            study, _, run, _ = self.dice.choice(self.runs)
            self.ledger.end_run(study, run, "finished")

    def crash(self) -> None:
        """Whatever this process knew is gone; reservations without commit stay so."""
        self.ledger.close()
        self.ledger = Ledger(self.path)
        if self.dice.random() < 0.5:
            self.loose.clear()

    def check(self, after: str) -> None:
        found = report(self.ledger, DELTA)
        rows = oracle["Rows"](self.path)
        for cohort in found.cohorts:
            true = rows.worst(cohort.cohort, DELTA)
            assert cohort.spent == pytest.approx(true, abs=CLOSE_ENOUGH), after
            assert cohort.spent >= self.spent.get(cohort.cohort, 0.0) - 1e-9, "it fell"
            self.spent[cohort.cohort] = cohort.spent
            bound = rows.worst(cohort.cohort, DELTA, set_aside=True)
            assert cohort.set_aside == pytest.approx(bound, abs=CLOSE_ENOUGH), after
            assert cohort.set_aside <= CAPS.epsilon_total + 1e-9, "a study beyond the cap got in"


@pytest.mark.parametrize("batch", range(HISTORIES // BATCH))
def test_the_ledger_says_what_its_rows_say_and_never_less(batch: int, tmp_path: Path) -> None:
    seen: set[str] = set()
    for number in range(batch * BATCH, (batch + 1) * BATCH):
        history = History(tmp_path / f"{number}.sqlite", random.Random(number))
        history.play(14)
        seen |= history.seen
    assert seen == {"admitted", "refused", "reserved"}, "these histories showed too little"


def test_the_oracle_would_notice_a_missing_release(tmp_path: Path) -> None:
    """A test that cannot fail is a defect: one event less is far outside of what is accepted."""
    history = History(tmp_path / "ledger.sqlite", random.Random(3))
    history.play(14)
    rows = oracle["Rows"](history.path)
    reserved = [entry for entry in rows.entries if entry[1] == "reserve"]
    worst = {cohort: rows.worst(cohort, DELTA) for cohort in rows.kinds}
    rows.entries.remove(reserved[0])
    changed = [abs(rows.worst(c, DELTA) - before) for c, before in worst.items()]
    assert max(changed) > 100 * CLOSE_ENOUGH
