"""Choices of a valid study that deserve a second look before hospitals are asked to take part."""

from __future__ import annotations

from collections.abc import Iterator

from fedward.common.study.schema import Study

CUSTOMARY_MAX_DELTA = 1e-3
CUSTOMARY_MAX_EPSILON = 10.0


def remarks(study: Study) -> tuple[str, ...]:
    """One sentence for each such choice; empty if there is none."""
    return (*_privacy(study), *_federation(study), *_simulation(study))


def _privacy(study: Study) -> Iterator[str]:
    privacy = study.privacy
    if privacy.epsilon is None or privacy.delta is None or not study.private:
        yield "no differential privacy: a site's updates can reveal records of its patients"
        return
    if privacy.unit == "record":
        yield "the promise holds per record: a patient with several records is protected less"
    if privacy.epsilon > CUSTOMARY_MAX_EPSILON:
        yield f"epsilon = {privacy.epsilon:g} is a weak promise; 1 to 10 is customary"
    if privacy.delta > CUSTOMARY_MAX_DELTA:
        yield (
            f"delta = {privacy.delta:g} is large: it should be well below one divided by the "
            "number of patients of a site"
        )
    if privacy.noise_multiplier is not None:
        yield "noise_multiplier is given: a site where that costs more than epsilon is refused"


def _federation(study: Study) -> Iterator[str]:
    if study.aggregation.min_sites < 2:
        yield "min_sites = 1: a round may rest on a single site, whose update is then not mixed"
    if study.preprocess.standardise == "site":
        yield "each site standardises by its own rows: `fedward predict` needs a site's own values"
    if study.data.single_class == "allow":
        yield "sites with one class only are allowed; their own AUROC is undefined"


def _simulation(study: Study) -> Iterator[str]:
    if study.simulation is None:
        yield "no [simulation]: `fedward simulate` needs one to know where the data are"
