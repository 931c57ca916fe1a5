"""Block by block gives what Flower's strategies give for the whole, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedward.common import records
from fedward.common.errors import LinkError, RoundError, TrainingError
from fedward.common.tensors import Weights, cosine, difference, norm
from fedward.server import blocks
from fedward.server.aggregation import Mean, aggregate, check_update, single_updates
from fedward.server.arrays import ResidentArray
from fedward.server.flower_internals import identify
from fedward.server.history import Drift
from fedward.server.replies import Replies, SelectedGrid
from fedward.server.strategies import is_mean, make_strategy, restore_state, strategy_state
from fedward.simulations.engines.loop import LoopGrid
from fedward.simulations.fakes import small_study

SHAPES = {"a": (3, 7), "b": (), "c": (0, 2), "d": (50,)}
ALGORITHMS: list[dict[str, Any]] = [
    {"name": "fedavg"},
    {"name": "fedprox", "mu": 0.1},
    {"name": "fedadam", "server_learning_rate": 0.1},
    {"name": "fedadam", "server_learning_rate": 0.1, "bias_correction": False},
    {"name": "fedyogi", "server_learning_rate": 0.1},
    {"name": "fedadagrad", "server_learning_rate": 0.1},
    {"name": "fedavgm", "momentum": 0.5},
    {"name": "fedavgm", "momentum": 0.0, "server_learning_rate": 0.5},
    {"name": "fedmedian"},
    {"name": "fedtrimmedavg", "cut": 0.25},
]
SITES = {"east": 3.0, "north": 1.0, "south": 17.0, "west": 2.5}


@pytest.fixture(autouse=True)
def _identity() -> None:
    identify(run_id=5)


def weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32).reshape(s) for n, s in SHAPES.items()}


def strategy(algorithm: dict[str, Any]) -> flower.FedAvg:
    study = small_study(algorithm=algorithm)
    return make_strategy(study, evaluate_metrics=lambda _contents, _by: MetricRecord())


def message(values: Weights, weight: float = 1.0, kind: type[Array] = ResidentArray) -> Message:
    record = ArrayRecord()
    for name, value in values.items():
        record[name] = kind(np.asarray(value))
    content = RecordDict(
        {records.ARRAYS: record, records.METRICS: MetricRecord({records.WEIGHT: weight})}
    )
    return Message(content, dst_node_id=2, message_type=records.TRAIN)


def begin(made: flower.FedAvg, number: int, before: Weights) -> None:
    grid = SelectedGrid(LoopGrid(ClientApp(), {}), [2])
    start = ArrayRecord({name: Array(np.asarray(value)) for name, value in before.items()})
    made.configure_train(number, start, ConfigRecord(), grid)


def whole(made: flower.FedAvg, number: int, before: Weights, updates: list[Weights]) -> Weights:
    """Flower's own way: everything at once, serialised."""
    begin(made, number, before)
    replies = [message(u, w, Array) for u, w in zip(updates, SITES.values(), strict=True)]
    arrays, _ = made.aggregate_train(number, replies)
    assert arrays is not None
    return {name: array.numpy().astype(np.float32) for name, array in arrays.items()}


def blockwise(made: flower.FedAvg, number: int, before: Weights, updates: list[Weights]) -> Weights:
    begin(made, number, before)
    replies = Replies({s: message(u) for s, u in zip(SITES, updates, strict=True)}, {})
    after, _ = aggregate(made, number, single_updates(replies, {**SITES, "absent": 1.0}), before)
    return after


def same(left: Weights, right: Weights) -> bool:
    return list(left) == list(right) and all(
        left[name].tobytes() == right[name].tobytes() and left[name].shape == right[name].shape
        for name in left
    )


@pytest.mark.parametrize("size", [1, 5, 21, 23, 10_000])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_it_is_flowers_result(
    algorithm: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward.server.aggregation.block_size", lambda _sites: size)
    theirs, ours = strategy(algorithm), strategy(algorithm)
    left = right = weights(0)
    for number in (1, 2, 3):
        updates = [weights(10 * number + index) for index in range(len(SITES))]
        left, right = whole(theirs, number, left, updates), blockwise(ours, number, right, updates)
        assert same(left, right)
        expected, found = strategy_state(theirs), strategy_state(ours)
        assert set(expected) == set(found)
        assert all(expected[key].tobytes() == found[key].tobytes() for key in expected)
        # A restart between rounds changes nothing.
        ours = strategy(algorithm)
        restore_state(ours, found)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:8], ids=str)
def test_a_mean_found_elsewhere_is_as_good_as_an_update(algorithm: dict[str, Any]) -> None:
    """Also where Flower is not asked: its mean of one update is that update, bit for bit."""
    before, mean = weights(0), weights(1)
    theirs, ours = strategy(algorithm), strategy(algorithm)
    begin(theirs, 1, before)
    wanted, _ = theirs.aggregate_train(1, [message(mean, 1.0, Array)])
    begin(ours, 1, before)
    drift = {"east": Drift(1.0, 0.5)}
    found, told = aggregate(ours, 1, Mean(mean, drift), before)
    assert wanted is not None
    assert same(found, {n: array.numpy().astype(np.float32) for n, array in wanted.items()})
    assert told == drift
    assert is_mean(ours) == (algorithm["name"] in ("fedavg", "fedprox"))


def test_a_mean_that_is_not_finite_is_refused() -> None:
    made, before = strategy({"name": "fedavg"}), weights(0)
    with pytest.raises(TrainingError, match="diverged at the server, tensor d"):
        aggregate(made, 1, Mean({**before, "d": np.full(50, np.inf, np.float32)}, {}), before)


def test_a_restored_memory_that_is_read_only_can_still_change() -> None:
    made = strategy({"name": "fedadam", "server_learning_rate": 0.1})
    blockwise(made, 1, weights(0), [weights(s) for s in range(4)])
    state = strategy_state(made)
    for value in state.values():
        value.flags.writeable = False
    restore_state(made, state)
    blockwise(made, 2, weights(0), [weights(s) for s in range(4)])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_drift_is_norm_and_cosine_of_each_update(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward.server.aggregation.block_size", lambda _sites: size)
    before, updates = weights(0), [weights(s) for s in range(1, 5)]
    made = strategy({"name": "fedavg"})
    begin(made, 1, before)
    replies = Replies({s: message(u) for s, u in zip(SITES, updates, strict=True)}, {})
    _, drift = aggregate(made, 1, single_updates(replies, SITES), before)
    moved = [difference(update, before) for update in updates]
    mean = {n: sum(w * m[n] for w, m in zip(SITES.values(), moved, strict=True)) for n in before}
    mean32 = {name: np.asarray(value, np.float32) for name, value in mean.items()}
    for site, update in zip(SITES, moved, strict=True):
        assert drift[site].norm == pytest.approx(norm(update), rel=1e-6)
        assert drift[site].cosine == pytest.approx(cosine(update, mean32), abs=1e-6)


def test_nobody_moved_means_no_direction() -> None:
    before = weights(0)
    made = strategy({"name": "fedavg"})
    begin(made, 1, before)
    _, drift = aggregate(
        made, 1, single_updates(Replies({"east": message(before)}, {}), SITES), before
    )
    assert (drift["east"].norm, drift["east"].cosine) == (0.0, 0.0)


def test_a_result_that_is_not_finite_is_refused_in_whatever_block_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedward.server.aggregation.block_size", lambda _sites: 4)
    before = weights(0)
    big = {**before, "d": np.full(50, 3e38, np.float32)}
    made = strategy({"name": "fedavgm", "server_learning_rate": 2.0})
    begin(made, 1, before)
    with pytest.raises(TrainingError, match="diverged at the server, tensor d"):
        aggregate(made, 1, single_updates(Replies({"east": message(big)}, {}), SITES), before)


# --- what is checked on arrival -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [Array, ResidentArray])
@pytest.mark.parametrize("size", [1, 6, 1000])
def test_one_bad_value_is_found_wherever_it_is(
    kind: type[Array], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward.server.aggregation.block_size", lambda _sites: size)
    before = weights(0)
    check_update(before, None)("east", message(weights(1), kind=kind))
    for name, value in before.items():
        for index in range(value.size):
            spoilt = {key: item.copy() for key, item in weights(1).items()}
            spoilt[name].reshape(-1)[index] = np.nan
            with pytest.raises(RoundError, match=f"tensor {name} holds NaN"):
                check_update(before, None)("east", message(spoilt, kind=kind))


@pytest.mark.parametrize("size", [1, 6, 1000])
def test_the_norm_is_that_of_the_whole_update(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedward.server.aggregation.block_size", lambda _sites: size)
    before, after = weights(0), weights(1)
    length = norm(difference(after, before))
    check_update(before, length * 1.0001)("east", message(after))
    with pytest.raises(RoundError, match="max_update_norm"):
        check_update(before, length * 0.9999)("east", message(after))


def test_an_update_that_overflows_is_too_large() -> None:
    before = {"w": np.full(2, -3e38, np.float32)}
    after = {"w": np.full(2, 3e38, np.float32)}
    check_update(before, None)("east", message(after))
    with pytest.raises(RoundError, match="max_update_norm"):
        check_update(before, 1e30)("east", message(after))


class Broken(ResidentArray):
    """An array whose file is gone."""

    def block(self, start: int, stop: int) -> Any:
        raise LinkError("a message's body cannot be read", hint="")


def test_an_array_that_cannot_be_read_is_its_senders_refusal() -> None:
    with pytest.raises(RoundError, match="arrays that cannot be read"):
        check_update(weights(0), None)("east", message(weights(0), kind=Broken))


def test_only_a_block_of_each_update_is_looked_at_at_a_time() -> None:
    asked: list[int] = []

    class Watched(ResidentArray):
        def numpy(self) -> Any:
            raise AssertionError("the whole update was read")

        def block(self, start: int, stop: int) -> Any:
            asked.append(stop - start)
            values: Any = self.__dict__["_values"]
            return values.reshape(-1)[start:stop]

    before = {"w": np.zeros(3 * blocks.LARGEST + 5, np.float32)}
    made = strategy({"name": "fedavg"})
    begin(made, 1, before)
    update = message(before, kind=Watched)
    check_update(before, 1.0)("east", update)
    once = len(asked)
    aggregate(made, 1, single_updates(Replies({"east": update}, {}), SITES), before)
    assert max(asked) == blocks.LARGEST
    assert len(asked) == 2 * once
