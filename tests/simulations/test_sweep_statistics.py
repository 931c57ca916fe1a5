"""Does the verdict of a sweep find what is there, and nothing that is not?

Cells are made up, a sweep of them is drawn again and again: patients from a population, a hold-out
by seed, and the chance of each training. Nothing is trained.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedward.common.metrics import replicates
from fedward.simulations.sweep.statistics import Design, Sample, interval, rank

PATIENTS, HOLDOUT = 400, 0.25
TESTED = int(PATIENTS * HOLDOUT)
RATIO = HOLDOUT / (1 - HOLDOUT)
ALPHA = 0.05


def draw(
    rng: np.random.Generator,
    cells: int,
    seeds: int,
    gain: float,
    *,
    training: float = 0.03,
    same: bool = False,
    resamples: int = 60,
) -> dict[str, Sample]:
    """A metric that is a mean over patients; cell `0` is better by `gain`."""
    hard = rng.normal(0, 1, (PATIENTS, 1))  # what is hard for one cell is hard for all
    per_patient = hard + rng.normal(0, 0.5, (PATIENTS, cells))
    per_patient[:, 0] += gain
    values = np.zeros((cells, seeds))
    resampled = np.zeros((cells, seeds, resamples))
    kept = rng.permutation(PATIENTS)[:TESTED]
    again = rng.multinomial(TESTED, np.full(TESTED, 1 / TESTED), size=resamples) / TESTED
    for seed in range(seeds):
        if not same:
            kept = rng.permutation(PATIENTS)[:TESTED]
            again = rng.multinomial(TESTED, np.full(TESTED, 1 / TESTED), size=resamples) / TESTED
        luck = rng.normal(0, training, cells)
        values[:, seed] = per_patient[kept].mean(axis=0) + luck
        resampled[:, seed] = (again @ per_patient[kept] + luck).T
    return {str(k): Sample(values[k], resampled[k]) for k in range(cells)}


def named(
    trials: int, cells: int, seeds: int, gain: float, *, ratio: float = RATIO, **how: object
) -> list[str | None]:
    rng = np.random.default_rng(11)
    design = Design(bool(how.get("same", False)), ratio, TESTED)
    return [
        rank(
            draw(rng, cells, seeds, gain, **how),  # type: ignore[arg-type]
            design,
            1 - ALPHA,
            higher_is_better=True,
        ).winner
        for _ in range(trials)
    ]


def most_by_chance(trials: int) -> int:
    """So many false winners are seen in one of a thousand tests, if α is kept."""
    return int(stats.binom.ppf(0.999, trials, ALPHA))


DESIGNS = [
    pytest.param(2, 5, {}, id="two cells, five seeds"),
    pytest.param(4, 5, {}, id="four cells, five seeds"),
    pytest.param(2, 2, {}, id="two cells, two seeds"),
    pytest.param(2, 5, {"training": 0.3}, id="the luck of training decides"),
    pytest.param(2, 1, {"training": 0.0}, id="one seed"),
    pytest.param(4, 1, {"training": 0.0}, id="four cells, one seed"),
    pytest.param(2, 5, {"same": True}, id="the same test patients"),
    pytest.param(4, 5, {"same": True, "training": 0.15}, id="the same, and luck"),
]


@pytest.mark.parametrize(("cells", "seeds", "how"), DESIGNS)
def test_equal_cells_have_a_winner_in_at_most_alpha_of_sweeps(
    cells: int, seeds: int, how: dict[str, object]
) -> None:
    trials = 300
    found = sum(name is not None for name in named(trials, cells, seeds, 0.0, **how))
    assert found <= most_by_chance(trials)


@pytest.mark.parametrize(
    ("cells", "seeds", "gain", "how"),
    [
        pytest.param(2, 5, 0.4, {}, id="two cells, five seeds"),
        pytest.param(4, 10, 0.4, {}, id="four cells, ten seeds"),
        pytest.param(4, 1, 0.4, {"training": 0.0}, id="one seed"),
        pytest.param(4, 5, 0.4, {"same": True}, id="the same test patients"),
    ],
)
def test_a_true_difference_is_found(
    cells: int, seeds: int, gain: float, how: dict[str, object]
) -> None:
    found = named(100, cells, seeds, gain, **how)
    assert found.count("0") >= 90
    assert found.count("0") + found.count(None) == 100


def test_the_test_above_notices_a_wrong_statistic() -> None:
    """A variance divided by n alone invents winners: the seeds share their patients."""
    found = named(100, 2, 40, 0.0, ratio=0.0, resamples=2, training=0.0)
    assert sum(name is not None for name in found) > 2 * most_by_chance(100)


def test_one_seed_with_real_scores() -> None:
    """Equal models by AUROC, resampled as the product does it."""
    rng = np.random.default_rng(2)
    design, trials, found = Design(same_patients=True, ratio=1 / 3, patients=120), 50, 0
    better = 0
    for _ in range(trials):
        truth = rng.integers(0, 2, 120)
        signal = 1.2 * truth + rng.normal(size=120)
        equal, good = {}, {}
        for name, skill in (("a", 0.0), ("b", 0.0), ("c", 2.0)):
            score = 1 / (1 + np.exp(-(signal + skill * truth + rng.normal(0, 0.7, 120))))
            drawn = replicates("binary", truth, score[:, None], None, resamples=100)["auroc"]
            value = stats.mannwhitneyu(score[truth == 1], score[truth == 0]).statistic
            pairs = truth.sum() * (120 - truth.sum())
            sample = Sample(np.array([value / pairs]), drawn[None])
            (equal if name != "c" else good)[name] = sample
        found += rank(equal, design, 0.95, higher_is_better=True).winner is not None
        better += rank(equal | good, design, 0.95, higher_is_better=True).winner == "c"
    assert found <= most_by_chance(trials)
    assert better >= 45


def test_against_the_formulas() -> None:
    values = np.array([0.1, 0.2, 0.4])
    error = np.sqrt((1 / 3 + 0.5) * values.var(ddof=1))
    found = interval(Sample(values, None), Design(False, 0.5, 50), 0.9)
    half = stats.t.ppf(0.95, 2) * error
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    # Seeds that agree by chance: the patients' variance counts.
    drawn = np.random.default_rng(0).normal(0, 1, (3, 500))
    each = drawn.var(axis=1, ddof=1).mean()
    found = interval(Sample(np.full(3, 0.2), drawn), Design(False, 0.5, 50), 0.9)
    assert found.high == pytest.approx(0.2 + stats.t.ppf(0.95, 2) * np.sqrt((1 / 3 + 0.5) * each))
    # The same patients for all seeds.
    seeds, patients = values.var(ddof=1) / 3, drawn.mean(axis=0).var(ddof=1)
    freedom = (seeds + patients) ** 2 / (seeds**2 / 2 + patients**2 / 49)
    found = interval(Sample(values, drawn), Design(True, 0.5, 50), 0.9)
    wanted = values.mean() + stats.t.ppf(0.95, freedom) * np.sqrt(seeds + patients)
    assert found.high == pytest.approx(wanted)


def test_bonferroni_and_direction() -> None:
    design = Design(False, 1 / 3, 50)
    rng = np.random.default_rng(1)
    samples = {str(k): Sample(k + rng.normal(0, 0.01, 5), None) for k in range(5)}
    up = rank(samples, design, 0.95, higher_is_better=True)
    assert (up.best, up.winner, up.tied) == ("4", "4", ())
    assert up.level == pytest.approx(1 - 0.05 / 4)
    down = rank(samples, design, 0.95, higher_is_better=False)
    assert (down.best, down.winner) == ("0", "0")
    assert down.differences["3"].value == pytest.approx(-3, abs=0.05)


def test_without_a_ground_there_is_no_interval_and_no_winner() -> None:
    design = Design(True, 1 / 3, 50)
    one = {"a": Sample(np.array([0.9]), None), "b": Sample(np.array([0.1]), None)}
    found = rank(one, design, 0.95, higher_is_better=True)
    assert (found.winner, found.tied) == (None, ("b",))
    assert found.differences["b"].low is None
    exact = {"a": Sample(np.array([0.9, 0.9]), None), "b": Sample(np.array([0.8, 0.8]), None)}
    assert rank(exact, Design(False, 0.3, 50), 0.95, higher_is_better=True).winner is None
    undefined = np.full((1, 100), np.nan)
    assert interval(Sample(np.array([0.9]), undefined), design, 0.95).low is None
