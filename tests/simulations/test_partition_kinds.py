"""Virtual sites: every patient once, whole, the same for the same seed, and skewed as asked."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.client.cohort import Cohort
from fedward.common.study.schema import Partition
from fedward.common.table import FeatureTable, ImageStack
from fedward.simulations.partition import partition

KINDS = ["iid", "dirichlet", "quantity", "feature-shift"]
NAMES = ("x", "id")


def make_cohort(patients=400, *, seed=0, rows=1.5, classes=2, holdout=0.25):
    """Patients with one or more rows in a shuffled order; `id` tells rows apart."""
    generator = np.random.default_rng(seed)
    extra_rows = generator.integers(0, patients, int(patients * (rows - 1)))
    patient = generator.permutation(np.r_[np.arange(patients), extra_rows]).astype(np.int64)
    test = generator.random(patients) < holdout
    label = generator.integers(0, classes, patients)
    numeric = np.stack((generator.normal(size=len(patient)), np.arange(len(patient))), axis=1)
    return Cohort(
        site="all",
        features=FeatureTable(
            numeric.astype(np.float32), np.zeros((len(patient), 0), dtype=np.int32), ()
        ),
        target=label[patient].astype(np.float32),
        patient=patient,
        test=test[patient],
        extra={"ward": np.array([f"Ward {p % 3}" for p in patient], dtype=object)},
    )


def spec(kind, sites=5, alpha=1.0, min_patients=5, column=None):
    if kind == "feature-shift":
        column = column or "x"
    return Partition(kind=kind, sites=sites, alpha=alpha, min_patients=min_patients, column=column)


def ids(cohort):
    return cohort.features.numeric[:, 1].astype(np.int64)


def divide(cohort, rule, seed=1, **options):
    return partition(cohort, rule, seed=seed, numeric=NAMES, **options)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    sites=st.integers(1, 20),
    alpha=st.sampled_from([0.3, 1.0, 50.0]),
    seed=st.integers(0, 10_000),
)
def test_every_patient_goes_to_one_site_with_all_rows(kind, sites, alpha, seed):
    cohort = make_cohort(seed=seed)
    # Twenty sites of twenty patients bear little label skew; refusals have tests of their own.
    alpha = 20 * alpha if kind == "dirichlet" else alpha
    parts = divide(cohort, spec(kind, sites, alpha, min_patients=4), seed)
    assert len(parts) == sites
    assert len({part.site for part in parts}) == sites
    rows = np.concatenate([ids(part) for part in parts])
    assert sorted(rows.tolist()) == list(range(len(cohort)))
    owners = [set(cohort.patient[ids(part)].tolist()) for part in parts]
    assert sum(len(o) for o in owners) == len(set.union(*owners)) == cohort.patients
    for part, owner in zip(parts, owners, strict=True):
        assert part.patients == len(owner) >= 4
        assert part.patient.max() == part.patients - 1
        np.testing.assert_array_equal(part.target, cohort.target[ids(part)])
        np.testing.assert_array_equal(part.test, cohort.test[ids(part)])
        np.testing.assert_array_equal(part.extra["ward"], cohort.extra["ward"][ids(part)])
        assert part.test.any()
        assert not part.test.all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_nothing_else(kind):
    cohort, rule = make_cohort(), spec(kind)
    np.random.seed(0)  # noqa: NPY002  (global randomness must not matter)
    first = [ids(part).tolist() for part in divide(cohort, rule, 7)]
    np.random.seed(1)  # noqa: NPY002
    assert [ids(part).tolist() for part in divide(cohort, rule, 7)] == first
    assert [ids(part).tolist() for part in divide(cohort, rule, 8)] != first


def label_skew(parts):
    """Mean distance of the sites' share of class 1 from the overall share."""
    every = np.concatenate([part.target for part in parts])
    return float(np.mean([abs(part.target.mean() - every.mean()) for part in parts]))


def size_skew(parts):
    sizes = np.array([part.patients for part in parts])
    return float(sizes.std() / sizes.mean())


@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_is_skewed_for_small_alpha_and_even_for_large(seed):
    cohort = make_cohort(4000, seed=seed)
    even = divide(cohort, spec("iid", 8), seed)
    large = divide(cohort, spec("dirichlet", 8, alpha=1e5), seed)
    small = divide(cohort, spec("dirichlet", 8, alpha=0.5, min_patients=2), seed)
    assert label_skew(even) < 0.05
    assert label_skew(large) < 0.05
    assert size_skew(large) < 0.05
    assert label_skew(small) > 0.12


@pytest.mark.parametrize("seed", range(5))
def test_quantity_changes_sizes_and_not_labels(seed):
    cohort = make_cohort(4000, seed=seed)
    small = divide(cohort, spec("quantity", 8, alpha=0.3, min_patients=50), seed)
    large = divide(cohort, spec("quantity", 8, alpha=1e5), seed)
    assert size_skew(small) > 0.5
    assert size_skew(large) < 0.05
    assert min(part.patients for part in small) >= 50
    assert max(label_skew(small), label_skew(large)) < 0.1


def test_quantity_shares_are_dirichlet():
    # A share of Dirichlet(alpha, …, alpha) has variance (1/n)(1 - 1/n)/(n·alpha + 1).
    cohort, sites, alpha = make_cohort(2000, rows=1), 4, 2.0
    shares = [
        part.patients / 2000
        for seed in range(300)
        for part in divide(cohort, spec("quantity", sites, alpha, min_patients=2), seed)
    ]
    expected = (1 / sites) * (1 - 1 / sites) / (sites * alpha + 1)
    assert 0.85 < np.var(shares) / expected < 1.15


def test_dirichlet_shares_of_a_class_are_dirichlet():
    cohort, sites, alpha = make_cohort(2000, rows=1), 3, 2.0
    ones = cohort.target.sum()
    shares = [
        part.target.sum() / ones
        for seed in range(300)
        for part in divide(cohort, spec("dirichlet", sites, alpha, min_patients=2), seed)
    ]
    expected = (1 / sites) * (1 - 1 / sites) / (sites * alpha + 1)
    assert 0.8 < np.var(shares) / expected < 1.2


def test_dirichlet_spreads_training_and_testing_alike():
    parts = divide(make_cohort(8000), spec("dirichlet", 4, alpha=1.0))
    for part in parts:
        train, test = part.target[~part.test].mean(), part.target[part.test].mean()
        assert train == pytest.approx(test, abs=0.03)


def test_dirichlet_goes_by_the_majority_of_a_patients_rows():
    cohort = make_cohort(600, rows=4.0, classes=3)
    noisy = cohort.target.copy()
    first = np.unique(cohort.patient, return_index=True)[1]
    often = np.bincount(cohort.patient)[cohort.patient[first]] >= 3
    noisy[first[often]] = (noisy[first[often]] + 1) % 3
    changed = Cohort("all", cohort.features, noisy, cohort.patient, cohort.test, cohort.extra)
    rule = spec("dirichlet", 3, alpha=1.0)
    for one, other in zip(divide(cohort, rule), divide(changed, rule), strict=True):
        np.testing.assert_array_equal(ids(one), ids(other))


def test_iid_sizes_are_even():
    for patients in (100, 101, 107):
        parts = divide(make_cohort(patients), spec("iid", 7))
        sizes = [part.patients for part in parts]
        assert max(sizes) - min(sizes) <= 1
        tests = [part.testing().patients for part in parts]
        assert max(tests) - min(tests) <= 1


def test_feature_shift_sorts_by_the_feature():
    cohort = make_cohort(1000, rows=1)
    sharp = divide(cohort, spec("feature-shift", 5, alpha=1e-9))
    edges = [(p.features.numeric[:, 0].min(), p.features.numeric[:, 0].max()) for p in sharp]
    means = [p.features.numeric[:, 0].mean() for p in sharp]
    assert means == sorted(means)
    # Training and test patients are cut at their own quantiles, which hardly differ.
    assert all(low[1] < high[0] + 0.3 for low, high in pairwise(edges))
    blurred = divide(cohort, spec("feature-shift", 5, alpha=1000.0))
    spread = np.ptp([p.features.numeric[:, 0].mean() for p in blurred])
    assert spread < 0.4 < 2.0 < np.ptp(means)


def test_feature_shift_by_an_extra_column_with_gaps():
    cohort = make_cohort(300, rows=1)
    years = np.where(cohort.patient % 10 == 0, np.nan, cohort.patient.astype(float))
    cohort.extra["year"] = years
    parts = divide(cohort, spec("feature-shift", 3, alpha=1e-9, column="year"))
    means = [np.nanmean(part.extra["year"]) for part in parts]
    assert means == sorted(means)
    assert sum(part.patients for part in parts) == 300


def test_feature_shift_of_images_goes_by_brightness():
    cohort = make_cohort(600, rows=1)
    pixels = np.random.default_rng(0).integers(0, 256, (600, 1, 1, 1), dtype=np.uint8)
    stack = ImageStack(np.broadcast_to(pixels, (600, 8, 8, 1)), np.arange(600))
    images = Cohort("all", stack, cohort.target, cohort.patient, cohort.test)
    parts = partition(images, spec("feature-shift", 3, 1e-9, column="brightness"), seed=1)
    means = [part.features.pixels[part.features.rows].mean() for part in parts]
    assert means == sorted(means)
    assert means[2] - means[0] > 100


def test_two_classes_everywhere_if_asked():
    cohort = make_cohort(300, classes=2)
    rule = spec("dirichlet", 5, alpha=0.7, min_patients=2)

    def complete(part):
        return all(len(np.unique(part.target[part.test == test])) == 2 for test in (False, True))

    asked = [p for seed in range(10) for p in divide(cohort, rule, seed, two_classes=True)]
    assert all(complete(part) for part in asked)
    free = [p for seed in range(10) for p in divide(cohort, rule, seed)]
    assert not all(complete(part) for part in free)


def test_a_thousand_sites_share_one_table():
    cohort = make_cohort(20_000, rows=1)
    for kind in KINDS:
        parts = divide(cohort, spec(kind, 1000, alpha=10.0, min_patients=2))
        assert len(parts) == 1000
        assert (parts[0].site, parts[-1].site) == ("site-0001", "site-1000")
        held = sum(part.features.numeric.nbytes for part in parts)
        assert held == cohort.features.numeric.nbytes
