"""What a data steward does with a study: find it, look at its cost here, approve, refuse, withdraw.

Everything here happens in the site's folder and stays there. The commands of
`client.commands.decide` and `budget` print what these functions return.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fedward.client.cohort import Cohort
from fedward.client.decisions import Decision, Decisions, Status, Verdict
from fedward.client.home import SiteFolder
from fedward.client.ledger import Ledger, Members, Totals, plan_hash
from fedward.client.ledger.account import Caps, Run
from fedward.client.ledger.admission import Forecast, check_fits, forecast
from fedward.client.loading import load_cohort
from fedward.client.manifest import Manifest, check, load_manifest, manifest_of, save_manifest
from fedward.client.offers import kept_offers, kept_study
from fedward.client.policy import Policy, load_policy
from fedward.client.policy import check as check_policy
from fedward.client.site_config import load_site_config
from fedward.common.audit.log import Signer
from fedward.common.errors import StateError, StudyError
from fedward.common.files import private_folder
from fedward.common.privacy.plan import PrivacyPlan, make_plan
from fedward.common.study import Study, load_study, study_hash

NEXT_RUN = "the next run"


@dataclass(frozen=True)
class Office:
    """A site's folder with what is needed to decide in it.

    Attributes:
        home: the folder.
        policy: as it is now.
        decisions: so far.
        passphrase: of the key files.
    """

    home: SiteFolder
    policy: Policy
    decisions: Decisions
    passphrase: str | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path, passphrase: str | None = None) -> Office:
        """Open a site's folder.

        Raises:
            FedwardError: it is none, or its policy or key cannot be read.
        """
        home = SiteFolder.open(path)
        private_folder(home.decisions)
        decisions = Decisions(home.decisions, home.load_public_key())
        return cls(home, load_policy(home.policy_file), decisions, passphrase)

    def offered(self) -> dict[str, Study]:
        """Studies that were offered, by hash."""
        found = kept_offers(self.home.studies) if self.home.studies.is_dir() else ()
        return {name: kept_study(self.home.studies, name) for name in found}

    def find(self, name: str) -> Study:
        """A study by its hash or the beginning of it, by its name, or from a file.

        Raises:
            StudyError: there is none, or more than one.
        """
        path = Path(name)
        if path.suffix == ".toml":
            return load_study(path)
        offered = self.offered()
        by_hash = [study for found, study in offered.items() if found.startswith(name.lower())]
        by_name = [study for study in offered.values() if study.study.name == name]
        matches = by_name or (by_hash if len(name) >= 4 else [])
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise StudyError(
                f"{len(matches)} studies are called {name}", hint="give more of the hash"
            )
        raise StudyError(
            "no such study was offered",
            hint="see `fedward client studies`, or give the path of a study.toml",
        )

    def cohort(self, study: Study) -> tuple[Cohort, Manifest]:
        """The patients who match a study, as they are now.

        Raises:
            DataError: the data cannot be used for it.
            IdentityError: the key that hashes patients cannot be read.
        """
        key = self.home.load_patients_key(self.passphrase)
        config = load_site_config(self.home.site_file)
        cache = self.home.state / "cache"
        cohort = load_cohort(study, config, key=key, identify=True, cache=cache)
        return cohort, manifest_of(study, cohort, key)


def plan_of(study: Study, manifest: Manifest) -> PrivacyPlan | None:
    """The site's plan for a study; None if it makes no promise.

    Raises:
        PrivacyError: its promise cannot be kept with so many patients.
    """
    return make_plan(study, len(manifest.training)) if study.private else None


def foresee(ledger: Ledger, study: Study, manifest: Manifest, caps: Caps) -> Forecast | None:
    """What one more run of a study would cost; None if it promises nothing, so nothing is counted.

    Raises:
        PrivacyError: its promise cannot be kept here, or the accountants disagree.
    """
    plan = plan_of(study, manifest)
    if plan is None:
        return None
    members: Mapping[str, Members] = {**ledger.cohorts(), manifest.members.id: manifest.members}
    run = Run(
        study=study_hash(study),
        run=NEXT_RUN,
        cohort=manifest.members.id,
        plan=plan_hash(plan),
        private=True,
        totals=Totals.of(plan),
    )
    return forecast(run, tuple(ledger.book.runs.values()), members, caps)


@dataclass(frozen=True)
class RunCount:
    """How often a study without a promise was run here.

    Attributes:
        before: runs that this site took part in.
        most: that its policy allows.
    """

    before: int
    most: int

    @property
    def another(self) -> bool:
        """Whether one more is allowed."""
        return self.before < self.most


def count_runs(office: Office, study: Study) -> RunCount | None:
    """Runs of a study so far; None if it makes a promise, for then the ledger's caps bound them.

    Raises:
        StateError: the ledger cannot be read.
    """
    if study.private:
        return None
    before = 0
    if office.home.ledger.exists():
        with Ledger(office.home.ledger) as ledger:
            before = ledger.book.runs_of(study_hash(study))
    return RunCount(before, office.policy.max_runs_per_study)


def approve(
    office: Office, study: Study, signer: Signer, *, by: str, reason: str, now: datetime
) -> tuple[Decision, Status]:
    """Approve a study for exactly the data that are here now.

    The first approval freezes the cohort (`state/manifests`); each further one is given only if the
    data still are those, so that all approve the same.

    Raises:
        PolicyError: the policy does not allow the study, or not this person.
        PrivacyError: it could not be finished under the caps.
        DataError: the data cannot be used, or have changed since the first approval.
    """
    name = study_hash(study)
    office.decisions.check_may_decide(office.policy, name, "approve", by, reason)
    for finding in check_policy(office.policy, study, now):
        if not finding.temporary:
            raise finding.error
    _, manifest = office.cohort(study)
    with Ledger(office.home.ledger) as ledger:
        expected = foresee(ledger, study, manifest, office.policy.caps)
        if expected is not None:
            check_fits(expected)
    if office.decisions.status(name, office.policy).approvals:
        check(load_manifest(office.home.manifests, name), manifest)
    else:
        private_folder(office.home.manifests)
        save_manifest(office.home.manifests, manifest)
    return decide(office, study, signer, "approve", by=by, reason=reason, manifest=manifest.digest)


def decide(
    office: Office,
    study: Study,
    signer: Signer,
    decision: Verdict,
    *,
    by: str,
    reason: str,
    manifest: str = "",
) -> tuple[Decision, Status]:
    """Write a decision down; one that ends a study frees what the ledger still sets aside for it.

    Raises:
        PolicyError: this person may not decide so.
    """
    name = study_hash(study)
    made = office.decisions.record(
        signer,
        office.policy,
        study=name,
        decision=decision,
        by=by,
        reason=reason,
        manifest=manifest,
    )
    if decision != "approve" and office.home.ledger.exists():
        with Ledger(office.home.ledger) as ledger:
            for run in [run for run in ledger.book.runs.values() if run.study == name and run.open]:
                ledger.end_run(name, run.run, "refused" if decision == "refuse" else "withdrawn")
    return made, office.decisions.status(name, office.policy)


def approved_manifest(office: Office, study: str) -> Manifest:
    """The manifest that was approved, verified: the one thing that a worker may train on.

    Raises:
        PolicyError: the study is not approved (any more).
        StateError: the manifest on the disk is not the one that was approved.
    """
    status = office.decisions.require_approved(study, office.policy)
    manifest = load_manifest(office.home.manifests, study)
    if manifest.digest != status.manifest:
        raise StateError(
            "the manifest of the cohort is not the one that was approved",
            hint="withdraw the study, find out who changed the file, and approve it anew",
        )
    return manifest
