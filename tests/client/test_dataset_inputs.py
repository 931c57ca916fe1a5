"""Rows as the model sees them: the right ones, in the right order, with the right patients."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedward.client.dataset import (
    Dataset,
    ImageInputs,
    JoinedInputs,
    MatrixInputs,
    join,
    to_dataset,
)
from fedward.client.evaluation import BATCH, predict
from fedward.client.workspace import Workspace
from fedward.common.models.registry import parse_model
from fedward.common.models.state import get_weights
from fedward.common.preprocess import fit
from fedward.common.table import ImageStack
from fedward.simulations.fakes import make_cohort, small_study


def numbered(first: int, rows: int, *, patients: int | None = None) -> Dataset:
    values = torch.arange(first, first + rows, dtype=torch.float32)
    patient = np.arange(rows) % (patients or max(rows, 1))
    return Dataset(MatrixInputs(values[:, None].repeat(1, 2)), values.clone(), patient)


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=5), data=st.data())
def test_joined_rows_are_those_of_the_parts(sizes: list[int], data: st.DataObject) -> None:
    starts = np.cumsum([0, *sizes])
    whole = join([numbered(int(s), n) for s, n in zip(starts, sizes, strict=False)])
    assert len(whole) == len(whole.inputs) == sum(sizes)
    assert whole.inputs.shape == (2,)
    if sum(sizes):
        rows = np.array(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=9)), np.int64)
        inputs, target = whole.batch(rows)
        assert inputs[:, 0].tolist() == target.tolist() == rows.tolist()


def test_patients_of_joined_sites_are_different_people() -> None:
    parts = [numbered(0, 6, patients=3), numbered(6, 4, patients=2)]
    whole = join(parts)
    assert whole.patients == 5
    assert whole.patient.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 3, 4]


def test_one_dataset_is_joined_as_it_is() -> None:
    part = numbered(0, 3)
    assert join([part]) is part


def test_a_dataset_without_rows_has_no_patients() -> None:
    assert numbered(0, 0).patients == 0


def test_pictures_are_scaled_standardised_and_channels_first() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    mean = np.array([0.1, 0.2, 0.3], np.float32)
    deviation = np.array([0.5, 1.0, 2.0], np.float32)
    inputs = ImageInputs(ImageStack(pixels, np.array([4, 0, 2])), mean, deviation)
    assert inputs.shape == (3, 4, 6)
    assert len(inputs) == 3
    taken = inputs.take(np.array([2, 0])).numpy()
    assert taken.shape == (2, 3, 4, 6)
    for place, image in ((0, 2), (1, 4)):
        for channel in range(3):
            plain = pixels[image, :, :, channel] / 255.0
            expected = (plain - mean[channel]) / deviation[channel]
            np.testing.assert_allclose(taken[place, channel], expected, atol=1e-6)


def test_pictures_join_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    one = np.ones(1, np.float32)
    parts = [
        ImageInputs(ImageStack(pixels, np.array(rows)), 0 * one, one) for rows in ([0], [2, 3])
    ]
    joined = JoinedInputs(tuple(parts))
    taken = joined.take(np.array([2, 0])).numpy()
    np.testing.assert_allclose(taken[:, 0], pixels[[3, 0], :, :, 0] / 255.0, atol=1e-6)


def test_a_cohort_becomes_what_the_transform_says() -> None:
    study = small_study(categorical=1)
    cohort = make_cohort(study, "a", patients=12, rows_per_patient=3)
    transform = fit(study)
    dataset = to_dataset(cohort, transform)
    rows = np.arange(len(dataset))
    inputs, target = dataset.batch(rows)
    np.testing.assert_array_equal(inputs.numpy(), transform.apply(cohort.features))  # type: ignore[arg-type]
    np.testing.assert_array_equal(target.numpy(), cohort.target)
    assert dataset.patients == cohort.patients == 12


def test_a_cohort_divides_into_training_and_testing_without_a_shared_patient() -> None:
    cohort = make_cohort(small_study(), "a", patients=20, rows_per_patient=4)
    training, testing = cohort.training(), cohort.testing()
    assert len(training) + len(testing) == len(cohort)
    assert training.patients + testing.patients == cohort.patients == 20
    assert testing.patients == 5
    assert set(cohort.patient[cohort.test]).isdisjoint(cohort.patient[~cohort.test])
    for part in (training, testing):
        assert sorted(set(part.patient)) == list(range(part.patients))


def test_taken_rows_may_change_their_site_and_keep_their_columns() -> None:
    study = small_study()
    cohort = make_cohort(study, "a", patients=6)
    extra = np.array(list("uvwxyz"))
    whole = type(cohort)(
        "a", cohort.features, cohort.target, cohort.patient, cohort.test, {"ward": extra}
    )
    part = whole.take(np.array([4, 1]), site="b")
    assert part.site == "b"
    assert part.extra["ward"].tolist() == ["y", "v"]
    assert part.patient.tolist() == [1, 0]
    assert whole.take(np.array([0])).site == "a"


def test_scores_are_the_same_in_one_batch_and_in_many() -> None:
    rng = np.random.default_rng(1)
    rows = BATCH + 3
    inputs = torch.from_numpy(rng.normal(size=(rows, 2)).astype(np.float32))
    data = Dataset(MatrixInputs(inputs), torch.zeros(rows), np.arange(rows))
    model = Workspace().module(parse_model({"name": "logistic"}), (2,), 1, private=False)
    model.train()
    found = predict(model, data, "binary")
    assert not model.training
    assert found.shape == (rows, 1)
    expected = torch.sigmoid(model(inputs)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scores_of_nobody_have_the_right_shape() -> None:
    data = Dataset(MatrixInputs(torch.zeros(0, 2)), torch.zeros(0), np.zeros(0, np.int64))
    model = Workspace().module(parse_model({"name": "logistic"}), (2,), 3, private=False)
    assert predict(model, data, "multiclass").shape == (0, 3)


def test_a_workspace_makes_a_module_once() -> None:
    workspace, spec = Workspace(), parse_model({"name": "mlp", "hidden": [3]})
    first = workspace.module(spec, (2,), 1, private=False)
    assert (
        workspace.module(parse_model({"name": "mlp", "hidden": [3]}), (2,), 1, private=False)
        is first
    )
    for other in (
        workspace.module(spec, (3,), 1, private=False),
        workspace.module(spec, (2,), 2, private=False),
        workspace.module(spec, (2,), 1, private=True),
        workspace.module(parse_model({"name": "mlp", "hidden": [4]}), (2,), 1, private=False),
    ):
        assert other is not first


def test_convolutions_have_channels_last_unless_they_are_private() -> None:
    """And what a site sends is in the usual order all the same."""
    spec, workspace = parse_model({"name": "cnn", "channels": [8], "pool": 2}), Workspace()
    layouts = []
    for private in (False, True):
        module = workspace.module(spec, (3, 6, 6), 1, private=private)
        weight = next(module.parameters())
        layouts.append(weight.is_contiguous(memory_format=torch.channels_last))
        assert all(value.flags.c_contiguous for value in get_weights(module).values())
    assert layouts == [True, False]
