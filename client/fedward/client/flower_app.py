"""The client as a Flower app: messages in, calls of `Site`, messages out.

The same app runs in every carrier; only how it finds its `Site` differs, and that is given to
`build_client_app`. A refusal goes back as a Flower error whose code is fedward's exit code and
whose reason is what a server may know (`reason_to_tell`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedward.client.site import Site
from fedward.client.telling import reason_to_tell
from fedward.common import records
from fedward.common.errors import FedwardError, RoundError, StudyError
from fedward.common.preprocess import Transform
from fedward.common.study import study_hash
from fedward.common.tensors import Weights

FindSite = Callable[[Context], Site]
"""Which site a message is for."""
_Handler = Callable[[Site, Message], RecordDict]
_Answer = Callable[[Message, Context], Message]


def build_client_app(
    find_site: FindSite,
    *,
    disclose: bool = False,
    on_refusal: Callable[[FedwardError], None] | None = None,
) -> ClientApp:
    """Make the client app.

    Args:
        find_site: gives the site that a Flower context belongs to.
        disclose: tell the server a refusal's own words, for simulations, where one person is both;
            see `reason_to_tell`.
        on_refusal: is told every refusal in its own words, for the site's own people.
    """
    handlers: dict[str, _Handler] = {
        records.INTRODUCE: _introduce,
        records.STATISTICS: _statistics,
        records.TRAIN: _train,
        records.EVALUATE: _evaluate,
    }
    return _routed(
        {kind: _answer(find_site, h, disclose, on_refusal) for kind, h in handlers.items()}
    )


def _routed(answers: Mapping[str, _Answer]) -> ClientApp:
    """An app that answers each type of message by its function."""
    app = ClientApp()
    for message_type, answer in answers.items():
        category, _, action = message_type.partition(".")
        register = {"query": app.query, "train": app.train, "evaluate": app.evaluate}[category]
        register(action or "default")(answer)
    return app


def _answer(
    find_site: FindSite,
    handler: _Handler,
    disclose: bool,
    on_refusal: Callable[[FedwardError], None] | None,
) -> _Answer:
    def answer(message: Message, context: Context) -> Message:
        try:
            site = find_site(context)
            _check_study(site, message)
            content = handler(site, message)
        except FedwardError as refusal:
            if on_refusal is not None:
                on_refusal(refusal)
            reason = str(refusal) if disclose else reason_to_tell(refusal)
            return Message(Error(refusal.exit_code, reason), reply_to=message)
        return Message(content, reply_to=message)

    return answer


def _check_study(site: Site, message: Message) -> None:
    """A message that names another study than the one this site holds is refused."""
    if _config(message).get(records.STUDY_HASH) != study_hash(site.study):
        raise StudyError(
            "the server asked for another study than this site holds",
            hint="compare `fedward study hash` on both sides",
        )


def _introduce(site: Site, _message: Message) -> RecordDict:
    return RecordDict({records.CONFIG: ConfigRecord({records.SITE: site.name})})


def _statistics(site: Site, _message: Message) -> RecordDict:
    statistics = site.statistics()
    return RecordDict(
        {
            records.ARRAYS: _array_record(statistics.to_arrays()),
            records.CONFIG: ConfigRecord({records.LEVELS: statistics.levels_json}),
        }
    )


def _train(site: Site, message: Message) -> RecordDict:
    task = _Task.read(message)
    weights = site.train(
        task.weights,
        task.transform,
        round_number=task.round,
        proximal_mu=task.proximal_mu,
    )
    return RecordDict(
        {
            records.ARRAYS: _array_record(weights),
            records.METRICS: MetricRecord({records.WEIGHT: 1.0}),
        }
    )


def _evaluate(site: Site, message: Message) -> RecordDict:
    task = _Task.read(message)
    counts = site.evaluate(task.weights, task.transform, round_number=task.round)
    arrays = {} if counts is None else counts.to_arrays()
    released = 0.0 if counts is None else 1.0
    return RecordDict(
        {
            records.ARRAYS: _array_record(arrays),
            records.METRICS: MetricRecord({records.WEIGHT: 1.0, records.RELEASED: released}),
        }
    )


@dataclass(frozen=True)
class _Task:
    """What the server asks for in a round."""

    weights: Weights
    transform: Transform
    round: int
    proximal_mu: float

    @staticmethod
    def read(message: Message) -> _Task:
        """Read a message.

        Raises:
            RoundError: it is not as it must be. Says nothing about the site.
        """
        config = _config(message)
        try:
            return _Task(
                weights=_weights(message),
                transform=Transform.from_json(cast("str", config[records.TRANSFORM])),
                round=int(cast("int", config[records.ROUND])),
                proximal_mu=float(cast("float", config.get(records.PROXIMAL_MU, 0.0))),
            )
        except (KeyError, TypeError, ValueError, EOFError) as error:
            raise RoundError(
                "the server's message cannot be read",
                hint="check that server and site run the same version of fedward",
            ) from error


def _array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records.get(records.CONFIG) or ConfigRecord()


def _weights(message: Message) -> Weights:
    arrays = message.content.array_records[records.ARRAYS]
    return {key: array.numpy().astype(np.float32, copy=False) for key, array in arrays.items()}


def _answer_at_node(message: Message, context: Context) -> Message:
    # Only here: the daemon is no part of the app on other carriers.
    from fedward.client.worker.flower_node import answer

    return answer(message, context)


app = _routed(
    dict.fromkeys(
        (records.INTRODUCE, records.STATISTICS, records.TRAIN, records.EVALUATE), _answer_at_node
    )
)
"""What a code-less bundle names, for Flower's own SuperNode; see `deploy/flower-app`."""
