"""From a study's `[algorithm]` to one of Flower's strategies, and its state to and from arrays.

Flower's strategies are used as they are. Which sites take part is decided by the round loop, so
they are told to take everyone they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.study import schema
from fedward.common.tensors import Weights
from fedward.server.arrays import array_record
from fedward.server.blocks import Block, cut

MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]


def make_strategy(study: schema.Study, *, evaluate_metrics: MetricsFunction) -> flower.FedAvg:
    """The Flower strategy that a study names.

    Args:
        study: its `[algorithm]` and `[training]` are used.
        evaluate_metrics: merges the evaluation replies of all sites into metrics.
    """
    shared: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "weighted_by_key": records.WEIGHT,
        "arrayrecord_key": records.ARRAYS,
        "configrecord_key": records.CONFIG,
        "evaluate_metrics_aggr_fn": evaluate_metrics,
    }
    match study.algorithm:
        case schema.FedProx(mu=mu):
            return flower.FedProx(proximal_mu=mu, **shared)
        case schema.FedAdam() | schema.FedYogi() | schema.FedAdagrad() as algorithm:
            return _adaptive(algorithm, study.training.learning_rate, shared)
        case schema.FedAvgM(server_learning_rate=rate, momentum=momentum):
            return flower.FedAvgM(server_learning_rate=rate, server_momentum=momentum, **shared)
        case schema.FedMedian():
            return flower.FedMedian(**shared)
        case schema.FedTrimmedAvg(cut=cut):
            return flower.FedTrimmedAvg(beta=cut, **shared)
        case _:
            return flower.FedAvg(**shared)


class UncorrectedFedAdam(flower.FedAdam):
    """Flower's FedAdam without the bias correction that algorithm 2 of the paper does not have.

    Flower multiplies the learning rate of round t by √(1 - β₂^(t+1)) / (1 - β₁^(t+1)) (Kingma and
    Ba 2014, section 2); the rate it starts from is divided by that here, so that the two cancel.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As Flower's, with steps of the learning rate that the study names."""
        power = server_round + 1.0
        factor = math.sqrt(1.0 - self.beta_2**power) / (1.0 - self.beta_1**power)
        rate = self.eta
        self.eta = rate / factor
        try:
            return super().aggregate_train(server_round, replies)
        finally:
            self.eta = rate


def _adaptive(
    algorithm: schema.FedAdam | schema.FedYogi | schema.FedAdagrad,
    local_rate: float,
    shared: dict[str, Any],
) -> flower.FedAvg:
    settings: dict[str, Any] = {
        **shared,
        "eta": algorithm.server_learning_rate,
        "eta_l": local_rate,
        "tau": algorithm.tau,
    }
    if isinstance(algorithm, schema.FedAdagrad):
        return flower.FedAdagrad(**settings)
    settings |= {"beta_1": algorithm.beta_1, "beta_2": algorithm.beta_2}
    if isinstance(algorithm, schema.FedYogi):
        return flower.FedYogi(**settings)
    kind = flower.FedAdam if algorithm.bias_correction else UncorrectedFedAdam
    return kind(**settings)


def is_mean(strategy: flower.FedAvg) -> bool:
    """Whether a strategy gives the weighted mean of all updates, so that of a mean itself."""
    return type(strategy) in (flower.FedAvg, flower.FedProx)


# The strategies keep their state between rounds in these attributes: a dictionary of arrays for
# the adaptive family, a list of arrays for FedAvgM. The global weights that they also remember are
# given to them again by `configure_train`.
_DICTIONARIES = ("m_t", "v_t")
_LIST = "momentum_vector"
_CURRENT = "current_arrays"


def strategy_state(strategy: flower.FedAvg) -> dict[str, NDArray[Any]]:
    """What a strategy remembers from round to round, as named arrays."""
    state: dict[str, NDArray[Any]] = {}
    for attribute in _DICTIONARIES:
        for key, value in (getattr(strategy, attribute, None) or {}).items():
            state[f"{attribute}/{key}"] = np.asarray(value)
    for index, value in enumerate(getattr(strategy, _LIST, None) or []):
        state[f"{_LIST}/{index:06d}"] = np.asarray(value)
    return state


def restore_state(strategy: flower.FedAvg, state: dict[str, NDArray[Any]]) -> None:
    """Give a fresh strategy back what `strategy_state` took from another of its kind."""
    for attribute in _DICTIONARIES:
        prefix = f"{attribute}/"
        values = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if values:
            setattr(strategy, attribute, {key: _writable(value) for key, value in values.items()})
    momentum = [state[key] for key in sorted(state) if key.startswith(f"{_LIST}/")]
    if momentum:
        setattr(strategy, _LIST, [_writable(value) for value in momentum])


def _writable(value: NDArray[Any]) -> NDArray[Any]:
    return value if value.flags.writeable else value.copy()


class BlockMemory:
    """A strategy's memory, shown to it one block of the model at a time.

    What Flower's strategies remember, they change value by value, so a block after the other gives
    the same as all at once. The arrays that `strategy_state` gives are changed in place.

    Args:
        strategy: whose memory; sees it whole again when the context is left.
        before: the global weights, which some strategies remember too.
    """

    def __init__(self, strategy: flower.FedAvg, before: Weights) -> None:
        self._strategy = strategy
        self._before = before
        self._whole: dict[str, dict[str, NDArray[Any]]] = {
            attribute: dict(getattr(strategy, attribute) or {})
            for attribute in _DICTIONARIES
            if hasattr(strategy, attribute)
        }
        if hasattr(strategy, _LIST):
            momentum = getattr(strategy, _LIST) or []
            self._whole[_LIST] = dict(zip(before, momentum, strict=bool(momentum)))
        self._fresh = {attribute for attribute, arrays in self._whole.items() if not arrays}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for attribute, arrays in self._whole.items():
            self._give(attribute, arrays)
        if hasattr(self._strategy, _CURRENT):
            setattr(self._strategy, _CURRENT, None)  # `configure_train` says it again

    def show(self, block: Block) -> None:
        """Let the strategy remember this block and nothing else."""
        for attribute, arrays in self._whole.items():
            self._give(attribute, {} if attribute in self._fresh else cut(arrays, block))
        if hasattr(self._strategy, _CURRENT):
            old = cut(self._before, block)
            as_record = isinstance(self._strategy, flower.FedAvgM)
            setattr(self._strategy, _CURRENT, array_record(old) if as_record else old)

    def keep(self, block: Block) -> None:
        """Take what the strategy now remembers of this block."""
        for attribute, arrays in self._whole.items():
            found = getattr(self._strategy, attribute) or {}
            if attribute == _LIST:
                found = dict(zip((part.name for part in block), found, strict=bool(found)))
            for part in block if found else ():
                value = found[part.name]
                if part.name not in arrays:
                    arrays[part.name] = np.empty(self._before[part.name].shape, value.dtype)
                part.of(arrays[part.name])[...] = value

    def _give(self, attribute: str, arrays: dict[str, NDArray[Any]]) -> None:
        values = list(arrays.values()) if attribute == _LIST else arrays
        setattr(self._strategy, attribute, values or None)
