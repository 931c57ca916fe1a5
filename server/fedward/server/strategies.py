"""From a study's `[algorithm]` to one of Flower's strategies, and its state to and from arrays.

Flower's strategies are used as they are. Which sites take part is decided by the round loop, so
they are told to take everyone they are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from fedward.common import records
from fedward.common.study import schema

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
        case schema.FedAdaptive() | schema.FedAdagrad() as algorithm:
            return _adaptive(algorithm, study.training.learning_rate, shared)
        case schema.FedAvgM(server_learning_rate=rate, momentum=momentum):
            return flower.FedAvgM(server_learning_rate=rate, server_momentum=momentum, **shared)
        case schema.FedMedian():
            return flower.FedMedian(**shared)
        case schema.FedTrimmedAvg(cut=cut):
            return flower.FedTrimmedAvg(beta=cut, **shared)
        case _:
            return flower.FedAvg(**shared)


def _adaptive(
    algorithm: schema.FedAdaptive | schema.FedAdagrad,
    local_rate: float,
    shared: dict[str, Any],
) -> flower.FedAvg:
    rates: dict[str, Any] = {
        "eta": algorithm.server_learning_rate,
        "eta_l": local_rate,
        "tau": algorithm.tau,
    }
    if isinstance(algorithm, schema.FedAdagrad):
        return flower.FedAdagrad(**rates, **shared)
    kind = {"fedadam": flower.FedAdam, "fedyogi": flower.FedYogi}[algorithm.name]
    return kind(beta_1=algorithm.beta_1, beta_2=algorithm.beta_2, **rates, **shared)


# The strategies keep their state between rounds in these attributes: a dictionary of arrays for
# the adaptive family, a list of arrays for FedAvgM. The global weights that they also remember are
# given to them again by `configure_train`.
_DICTIONARIES = ("m_t", "v_t")
_LIST = "momentum_vector"


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
            setattr(strategy, attribute, values)
    momentum = [state[key] for key in sorted(state) if key.startswith(f"{_LIST}/")]
    if momentum:
        setattr(strategy, _LIST, momentum)
