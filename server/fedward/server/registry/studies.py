"""Sites, the studies that they are offered, and what they answer."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedward.common.errors import StateError
from fedward.common.study import Study, canonical_json, study_hash
from fedward.server.registry.database import Database
from fedward.server.registry.facts import Answer, Offer, Site, Standing
from fedward.server.registry.states import Choice, State, choose, enough, follow, ready
from fedward.server.registry.tables import (
    FIRST_NODE,
    DecisionRow,
    EventRow,
    InvitationRow,
    RunRow,
    SiteRow,
    StudyRow,
)


class StudyRecords(Database):
    """The part of the registry about studies before they run."""

    def enrol(self, name: str) -> int:
        """A site's node id; a site that is new is given one."""
        with self._changes() as session:
            return self._enrol(session, name).node

    def _enrol(self, session: Session, name: str) -> SiteRow:
        found = session.get(SiteRow, name)
        if found is None:
            highest = session.scalar(select(func.max(SiteRow.node))) or FIRST_NODE - 1
            found = SiteRow(name=name, node=highest + 1, since_ms=self._clock())
            session.add(found)
            session.flush()
            self._note(session, "site enrolled", site=name)
        return found

    def sites(self) -> tuple[Site, ...]:
        """All sites that were ever seen, by node id."""
        with self._reads() as session:
            rows = session.scalars(select(SiteRow).order_by(SiteRow.node))
            return tuple(Site(row.name, row.node, row.since_ms) for row in rows)

    def offer(self, study: Study, evidence: bytes, invited: Collection[str]) -> bool:
        """Offer a study to sites; offering it again invites those that are new.

        Args:
            study: the protocol.
            evidence: the coordinator's signed words.
            invited: names of sites.

        Returns:
            Whether anything is new.

        Raises:
            StateError: nobody, or fewer than the study needs, would be invited; or the study is
                over.
        """
        name, digest = study.study.name, study_hash(study)
        with self._changes() as session:
            row = session.get(StudyRow, digest)
            if row is not None and self._state(session, row) not in (State.OFFERED, State.APPROVED):
                raise StateError(
                    f"study {name} is {self._state(session, row)} already",
                    hint="offer a new version of it",
                )
            known = set(self._answers(session, digest))
            fresh = sorted(set(invited) - known)
            if len(known | set(invited)) < max(1, study.aggregation.min_sites):
                raise StateError(
                    f"study {name} needs {study.aggregation.min_sites} sites, "
                    f"{len(known | set(invited))} would be invited",
                    hint="enrol or name more sites",
                )
            if row is None:
                session.add(self._study_row(study, digest, evidence))
                session.flush()
                self._note(session, "study offered", study=digest, name=name)
            for site in fresh:
                self._enrol(session, site)
                session.add(InvitationRow(study=digest, site=site, evidence=b"", at_ms=0))
                self._note(session, "site invited", study=digest, site=site)
            return row is None or bool(fresh)

    def _study_row(self, study: Study, digest: str, evidence: bytes) -> StudyRow:
        return StudyRow(
            hash=digest,
            name=study.study.name,
            document=canonical_json(study),
            evidence=evidence,
            state=State.OFFERED.value,
            min_sites=study.aggregation.min_sites,
            rounds=study.training.rounds,
            offered_ms=self._clock(),
        )

    def decide(self, site: str, study: str, choice: Choice, evidence: bytes) -> bool:
        """Record what a site answers; the same answer again changes nothing.

        Args:
            site: who.
            study: hash.
            choice: the answer.
            evidence: the site's signed words, checked by the caller.

        Returns:
            Whether it is new.

        Raises:
            StateError: the site was not invited, or the answer does not follow on its earlier one
                or on the study's state.
        """
        with self._changes() as session:
            row = self._study(session, study)
            invitation = session.get(InvitationRow, (study, site))
            if invitation is None:
                raise StateError(
                    f"site {site} was not invited to study {row.name}", hint="invite it first"
                )
            before = None if invitation.choice is None else Choice(invitation.choice)
            if before is choice:
                return False
            choose(before, choice)
            state = self._state(session, row)
            if choice is Choice.APPROVE and (state.final or State(row.state) is State.STOPPED):
                raise StateError(f"study {row.name} is {state}", hint="nothing is left to approve")
            now = self._clock()
            invitation.choice, invitation.evidence, invitation.at_ms = choice.value, evidence, now
            session.add(
                DecisionRow(
                    study=study, site=site, choice=choice.value, evidence=evidence, at_ms=now
                )
            )
            session.flush()
            self._note(session, f"site answered: {choice}", study=study, site=site)
            self._recount(session, row)
            return True

    def _recount(self, session: Session, row: StudyRow) -> None:
        """An offer that no run has begun is approved while enough sites approve."""
        now = State(row.state)
        if now not in (State.OFFERED, State.APPROVED):
            return
        answers = self._answers(session, row.hash).values()
        approved = [answer.site for answer in answers if answer.choice is Choice.APPROVE]
        wanted = enough(approved, row.min_sites)
        if wanted is not now:
            row.state = follow(now, wanted).value
            self._note(session, f"study is {wanted}", study=row.hash)

    def close_offer(self, study: str) -> None:
        """Take back an offer that no run has begun.

        Raises:
            StateError: there is none, or a run has begun.
        """
        with self._changes() as session:
            row = self._study(session, study)
            if self._runs(session, study):
                raise StateError(f"study {row.name} has a run", hint="stop the run")
            row.state = follow(State(row.state), State.STOPPED).value
            self._note(session, "offer taken back", study=study)

    def study(self, study: str) -> Offer:
        """A study by its hash.

        Raises:
            StateError: there is none.
        """
        with self._reads() as session:
            return self._offer(session, self._study(session, study))

    def studies(self) -> tuple[Offer, ...]:
        """All studies, oldest first."""
        with self._reads() as session:
            rows = session.scalars(select(StudyRow).order_by(StudyRow.offered_ms, StudyRow.hash))
            return tuple(self._offer(session, row) for row in rows.all())

    def standings(self, site: str | None = None) -> tuple[Standing, ...]:
        """Where all studies stand, or those that a site is invited to; oldest first."""
        with self._reads() as session:
            return self._standings(session, site)

    def offered(self, site: str) -> tuple[Offer, ...]:
        """Studies that a site is invited to and that are not over, oldest first."""
        with self._reads() as session:
            return tuple(
                self._offer(session, self._study(session, found.study))
                for found in self._standings(session, site)
                if found.state.active or not found.state.final
            )

    def approved_and_over(self, site: str) -> tuple[str, ...]:
        """Hashes of studies that are over and that a site still approves, oldest first."""
        return tuple(
            found.study
            for found in self.standings(site)
            if found.state.final and found.choices[site] is Choice.APPROVE
        )

    def decisions(self, study: str) -> tuple[Answer, ...]:
        """Everything that sites ever answered to a study, in order."""
        with self._reads() as session:
            rows = session.scalars(
                select(DecisionRow).where(DecisionRow.study == study).order_by(DecisionRow.id)
            )
            return tuple(Answer(r.site, Choice(r.choice), r.evidence, r.at_ms) for r in rows)

    def approving(self, study: str) -> dict[str, int]:
        """Sites that approve a study now, each with its number for carriers."""
        query = (
            select(SiteRow.name, SiteRow.node)
            .join(InvitationRow, InvitationRow.site == SiteRow.name)
            .where(InvitationRow.study == study, InvitationRow.choice == Choice.APPROVE.value)
        )
        with self._reads() as session:
            return {row.name: row.node for row in session.execute(query)}

    def startable(self, active: Collection[str]) -> tuple[str, ...]:
        """Studies whose first run can start by itself; see `states.ready`.

        Args:
            active: sites that the roster has as active.
        """
        return tuple(
            found.study
            for found in self.standings()
            if found.state is State.APPROVED
            and not found.run
            and ready(found.choices, active, found.min_sites)
        )

    def changes(self) -> int:
        """Grows with every change of a study, an answer or the state of a run, whoever makes it.

        Each of them has an event, which comes or goes with it. Costs next to nothing.
        """
        with self._reads() as session:
            return session.scalar(select(func.max(EventRow.id))) or 0

    def _standings(self, session: Session, site: str | None) -> tuple[Standing, ...]:
        """Without documents and signatures: those may be megabytes, and this is asked often."""
        studies = select(StudyRow.hash, StudyRow.state, StudyRow.min_sites)
        answers = select(InvitationRow.study, InvitationRow.site, InvitationRow.choice)
        runs = select(RunRow.study, RunRow.id, RunRow.state)
        if site is not None:
            invited = select(InvitationRow.study).where(InvitationRow.site == site)
            studies = studies.where(StudyRow.hash.in_(invited))
            answers = answers.where(InvitationRow.study.in_(invited))
            runs = runs.where(RunRow.study.in_(invited))
        choices: dict[str, dict[str, Choice | None]] = {}
        for study, who, choice in session.execute(answers):
            choices.setdefault(study, {})[who] = None if choice is None else Choice(choice)
        newest = {
            study: (run, state)
            for study, run, state in session.execute(runs.order_by(RunRow.number))
        }
        found = []
        order = (StudyRow.offered_ms, StudyRow.hash)
        for study, offer, min_sites in session.execute(studies.order_by(*order)):
            run, state = newest.get(study, ("", offer))
            found.append(Standing(study, State(state), min_sites, choices.get(study, {}), run))
        return tuple(found)

    def _study(self, session: Session, study: str) -> StudyRow:
        row = session.get(StudyRow, study)
        if row is None:
            raise StateError("there is no such study", hint="see `fedward server status`")
        return row

    def _answers(self, session: Session, study: str) -> dict[str, Answer]:
        rows = session.scalars(
            select(InvitationRow).where(InvitationRow.study == study).order_by(InvitationRow.site)
        )
        return {
            row.site: Answer(
                row.site,
                None if row.choice is None else Choice(row.choice),
                row.evidence,
                row.at_ms,
            )
            for row in rows
        }

    def _runs(self, session: Session, study: str) -> list[RunRow]:
        return list(
            session.scalars(select(RunRow).where(RunRow.study == study).order_by(RunRow.number))
        )

    def _state(self, session: Session, row: StudyRow) -> State:
        runs = self._runs(session, row.hash)
        return State(runs[-1].state if runs else row.state)

    def _offer(self, session: Session, row: StudyRow) -> Offer:
        runs = self._runs(session, row.hash)
        return Offer(
            study=row.hash,
            name=row.name,
            document=row.document,
            evidence=row.evidence,
            state=State(runs[-1].state if runs else row.state),
            min_sites=row.min_sites,
            offered_ms=row.offered_ms,
            answers=self._answers(session, row.hash),
            runs=tuple(run.id for run in runs),
        )
