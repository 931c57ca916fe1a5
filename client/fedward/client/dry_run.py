"""One local training step on the real data, so that what would fail fails before anyone approves.

Nothing leaves this process: not a weight, not a figure, not a reason. So nothing is released and
nothing is charged; the ledger is not even opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Any

from fedward.client.cohort import Cohort
from fedward.client.site import RandomnessFor, Site
from fedward.client.workspace import Workspace
from fedward.common.models.state import build_module, get_weights
from fedward.common.preprocess import fit, needs_federated
from fedward.common.privacy.plan import make_plan
from fedward.common.study import Study

NOTICE = "Nothing left this machine and nothing was charged: a dry run releases nothing."


@dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    Attributes:
        parameters: numbers that the model consists of.
        seconds: that preparing the data and one step took.
    """

    parameters: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {"notice": NOTICE, "parameters": self.parameters, "seconds": self.seconds}


def dry_run(study: Study, cohort: Cohort, randomness: RandomnessFor) -> DryRun:
    """Prepare the data and take one step, as a round would; the result is thrown away.

    Raises:
        PrivacyError: the study's promise cannot be kept with so many patients.
        TrainingError: training diverged at its first step.
    """
    started = monotonic()
    if study.private:
        make_plan(study, cohort.training().patients)  # the whole study's, not that of one step
    one = {"rounds": 1, "local_epochs": None, "local_steps": 1}
    short = study.model_copy(update={"training": study.training.model_copy(update=one)})
    site = Site(cohort.site, short, (cohort,), randomness=randomness, workspace=Workspace())
    transform = fit(short, site.statistics() if needs_federated(short) else None)
    training = site.training(transform)
    module = build_module(study.model, training.inputs.shape, study.task.outputs, seed=0)
    weights = get_weights(module)
    site.train(weights, transform, round_number=1, proximal_mu=0.0)
    return DryRun(sum(value.size for value in weights.values()), monotonic() - started)
