"""What a finished run gives to the world, in one folder that anybody can check offline.

    release/
      model/               weights, frozen preprocessing, card: what `fedward predict` runs
      offer.json           the study, as the coordinator signed it
      evaluation.json      metrics of the final model, by hospital and overall
      privacy.json         what the study promises to each patient
      participation.json   who took part in which round, who refused, withdrew or was away
      receipts.jsonl       each contribution, as the hospital signed it
      heads.json           ends of the audit logs and ledgers, and who signed them
      roster.json          who was who, signed by the consortium's issuer
      RELEASE.json         SHA-256 of every file above, signed by the coordinator

`verification` checks it. Nothing in it tells how many patients a hospital has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.common.audit import AuditLog
from fedward.common.errors import ModelError, StateError
from fedward.common.files import read_bytes, replace_directory, staging, write_atomic
from fedward.common.identity import RosterFile
from fedward.common.models.bundle import write_bundle
from fedward.common.models.card import CardFacts
from fedward.common.models.provenance import Provenance
from fedward.common.records import TRAIN
from fedward.common.statements import RELEASE, Signer, state
from fedward.common.study import Study, study_hash
from fedward.server.checkpoints import RunState
from fedward.server.model_hash import model_hash
from fedward.server.registry import Choice, LogHead, Offer, Receipt, Registry, Round, Run

MODEL = "model"
OFFER_FILE = "offer.json"
EVALUATION = "evaluation.json"
PRIVACY = "privacy.json"
PARTICIPATION = "participation.json"
RECEIPTS = "receipts.jsonl"
HEADS = "heads.json"
ROSTER = "roster.json"
MANIFEST = "RELEASE.json"


@dataclass(frozen=True)
class Releaser:
    """Writes releases.

    Attributes:
        registry: what is on record about the run.
        roster: who was who.
        audit: the coordinator's log.
        name: of the coordinator, in the roster.
        key: the coordinator's.
        folder_for_run: where a run keeps its files.
        proves: whether contributions came over the link, each signed.
    """

    registry: Registry
    roster: RosterFile
    audit: AuditLog
    name: str
    key: Signer
    folder_for_run: Callable[[str], Path]
    proves: bool = True

    def __call__(self, run: Run, study: Study, final: RunState) -> None:
        """Write the release of a run, whole or not at all; one that is there stays.

        Raises:
            StateError: a contribution has no receipt.
            ModelError: the model is not fit for release.
            OutputError: the disk refuses.
        """
        target = self.folder_for_run(run.id) / "release"
        if (target / MANIFEST).is_file():
            self._note(run, target)
            return
        offer, rounds = self.registry.study(run.study), self.registry.rounds(run.id)
        _check_last(rounds, final)
        receipts = self._receipts(run, rounds)
        with staging(target) as stage:
            contents = {
                OFFER_FILE: offer.evidence,
                EVALUATION: _json(_evaluation(study, rounds[-1])),
                PRIVACY: _json(privacy_statement(study)),
                PARTICIPATION: _json(participation(offer, rounds)),
                RECEIPTS: b"".join(map(_line, receipts)),
                HEADS: _json(self._heads(run)),
                ROSTER: self.roster.data,
            }
            for name, content in contents.items():
                write_atomic(stage / name, content)
            _write_model(stage / MODEL, study, final, offer, rounds)
            said = self._said(run, digests(stage))
            write_atomic(stage / MANIFEST, state(RELEASE, self.name, said, self.key))
            replace_directory(stage, target)
        self._note(run, target)

    def _note(self, run: Run, target: Path) -> None:
        """Put the release on record, once; also one that a killed service could not."""
        facts = {"run": run.id, "sha256": hashlib.sha256(read_bytes(target / MANIFEST)).hexdigest()}
        known = (entry.facts for entry in self.audit.entries() if entry.kind == "release")
        if facts not in (dict(found) for found in known):
            self.audit.append("release", **facts)

    def _said(self, run: Run, files: Mapping[str, str]) -> dict[str, Any]:
        return {
            "consortium": self.roster.current.consortium,
            "study": run.study,
            "run": run.id,
            "rounds": run.rounds,
            "proves": self.proves,
            "files": dict(files),
        }

    def _receipts(self, run: Run, rounds: tuple[Round, ...]) -> list[Receipt]:
        """The receipts of what is in the model."""
        known = {
            (receipt.round, receipt.site): receipt
            for receipt in self.registry.receipts(run.id)
            if receipt.action == TRAIN
        }
        wanted = [(r.round, site) for r in rounds for site in r.participants]
        missing = [
            f"{site} in round {number}" for number, site in wanted if not known.get((number, site))
        ]
        if missing and self.proves:
            raise StateError(
                f"there is no receipt for {missing[0]}",
                hint="the registry may be an older copy; restore the newest and resume",
            )
        return [known[key] for key in wanted if key in known]

    def _heads(self, run: Run) -> dict[str, Any]:
        head = self.audit.head
        return {
            "coordinator": {"audit": head.to_dict()},
            "sites": [_shown(h) for h in self.registry.heads() if h.site in run.sites],
            "rounds": [
                {"round": r.round, "heads": dict(r.heads)} for r in self.registry.rounds(run.id)
            ],
            "countersignatures": [
                s.evidence.decode()
                for s in self.registry.countersignatures()
                if s.site in run.sites
            ],
        }


def participation(offer: Offer, rounds: tuple[Round, ...]) -> dict[str, Any]:
    """Who took part in which round, and who did not and why."""
    return {
        "answers": {
            site: None if answer.choice is None else answer.choice.value
            for site, answer in sorted(offer.answers.items())
        },
        "rounds": [
            {
                "round": r.round,
                "participants": list(r.participants),
                "refused": dict(sorted(r.refused.items())),
                "model": r.model_sha256,
            }
            for r in rounds
        ],
    }


def privacy_statement(study: Study) -> dict[str, Any]:
    """What the study promises; not how much noise, and no count, from which a count follows."""
    if not study.private:
        return {
            "mode": "none",
            "statement": "Records stayed in the hospitals. The model was trained without "
            "differential privacy: its weights can reveal details of single patients.",
        }
    privacy = study.privacy
    return {
        "mode": privacy.mode,
        "unit": privacy.unit,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "relation": "adding or removing one",
        "statement": f"At each hospital, everything that the study released about its patients is "
        f"({privacy.epsilon:g}, {privacy.delta:g})-differentially private for each "
        f"{privacy.unit}; the hospital's own ledger enforced it.",
    }


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by path, but the manifest's.

    Raises:
        ModelError: there is a link among them.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelError(f"{name} is a link", hint="a release holds files only")
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _write_model(
    folder: Path, study: Study, final: RunState, offer: Offer, rounds: tuple[Round, ...]
) -> None:
    trained = sorted({site for r in rounds for site in r.participants})
    metrics = rounds[-1].evaluation
    write_bundle(
        folder,
        study=study,
        weights=final.weights,
        transform_json=final.transform,
        provenance=Provenance.of(study, simulated=False),
        facts=CardFacts(
            sites=trained,
            empty_rounds=[r.round for r in rounds if not r.participants],
            others=_others(offer, trained),
            metrics={
                "federated": {
                    place: {
                        name: {"value": value, "low": None, "high": None}
                        for name, value in figures.items()
                    }
                    for place, figures in metrics.items()
                }
            },
        ),
    )


def _others(offer: Offer, trained: list[str]) -> dict[str, str]:
    """Invited hospitals about which a reader has to know more, and what."""
    said = {
        None: "did not answer",
        Choice.APPROVE: "approved, but contributed to no round",
        Choice.REFUSE: "refused",
        Choice.WITHDRAW: "withdrew",
    }
    found: dict[str, str] = {}
    for site, answer in sorted(offer.answers.items()):
        if site not in trained:
            found[site] = said[answer.choice]
        elif answer.choice is Choice.WITHDRAW:
            found[site] = "withdrew; what it contributed before is in the model"
    return found


def _evaluation(study: Study, last: Round) -> dict[str, Any]:
    return {
        "study": study_hash(study),
        "round": last.round,
        "metric": study.evaluation.metric,
        "metrics": dict(last.evaluation),
    }


def _check_last(rounds: tuple[Round, ...], final: RunState) -> None:
    """What is released must be what was counted."""
    last = rounds[-1] if rounds else None
    if last is None or (last.round, last.model_sha256) != (final.round, model_hash(final.weights)):
        raise StateError(
            "the last round on record did not give the model of the last checkpoint",
            hint="the registry may be an older copy; restore the newest and resume",
        )


def _shown(head: LogHead) -> dict[str, Any]:
    return {"site": head.site, "log": head.log, "length": head.length, "hash": head.hash}


def _line(receipt: Receipt) -> bytes:
    said = {"round": receipt.round, "site": receipt.site, "evidence": receipt.evidence.hex()}
    return (json.dumps(said, sort_keys=True) + "\n").encode()


def _json(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()
