"""A study of pictures goes the same way as one of tables, with and without privacy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedward.client.cohort import Cohort
from fedward.common.study import Study
from fedward.common.table import ImageStack
from fedward.simulations.engines.flaky import run_flaky
from fedward.simulations.fakes import make_sites, small_study

SIZE = 8


def a_study(**changes: Any) -> Study:
    return small_study(
        data={"modality": "image", "features": []},
        preprocess={"image": {"height": SIZE, "width": SIZE}, "standardise": "federated"},
        model={"name": "cnn"},
        training={"rounds": 3, "local_epochs": 6, "optimiser": "adam", "learning_rate": 0.02},
        **changes,
    )


def a_cohort(site: str, seed: int, patients: int = 40) -> Cohort:
    """Half of the pictures have a bright square in one corner: the finding."""
    rng = np.random.default_rng(seed)
    target = (np.arange(patients) % 2).astype(np.float32)
    pixels = rng.integers(0, 120, (patients, SIZE, SIZE, 1), dtype=np.uint8)
    pixels[target == 1, :4, :4] += 100
    return Cohort(
        site,
        ImageStack(pixels, np.arange(patients)),
        target,
        np.arange(patients),
        np.arange(patients) % 4 >= 2,
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"privacy": {"mode": "dp", "epsilon": 50.0, "delta": 1e-3, "max_grad_norm": 2.0}}],
    ids=["open", "private"],
)
def test_pictures_are_learnt(changes: dict[str, Any]) -> None:
    study = a_study(**changes)
    sites = make_sites(study, [a_cohort("a", 1), a_cohort("b", 2)])
    outcome = run_flaky(study, sites)
    assert len(outcome.transform.channels) == 1
    auroc = outcome.history[-1].evaluation["overall"]["auroc"]
    assert auroc is not None
    assert auroc > 0.8
    assert all(np.isfinite(value).all() for value in outcome.weights.values())
