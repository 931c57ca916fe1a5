"""The client app: messages in, the site's answers out, and nothing else."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedward.client.flower_app import build_client_app
from fedward.client.site import Site
from fedward.common import records
from fedward.common.errors import DataError, FedwardError, PrivacyError, StudyError, TrainingError
from fedward.common.preprocess import Transform, fit
from fedward.common.study import Study, study_hash
from fedward.common.tensors import Weights
from fedward.server.flower_internals import identify
from fedward.server.preparation import first_weights
from fedward.simulations.fakes import make_cohorts, make_sites, small_study

NODE = 9


@pytest.fixture(autouse=True)
def _identity() -> None:
    identify(run_id=1)


def a_site(study: Study) -> Site:
    return make_sites(study, make_cohorts(study, 1, patients=60))[0]


def ask(app: ClientApp, kind: str, content: RecordDict) -> Message:
    context = Context(1, NODE, {}, RecordDict(), {})
    return app(Message(content, dst_node_id=NODE, message_type=kind), context)


def content(study: Study, weights: Weights | None = None, **config: Any) -> RecordDict:
    found = RecordDict(
        {records.CONFIG: ConfigRecord({records.STUDY_HASH: study_hash(study), **config})}
    )
    if weights is not None:
        found[records.ARRAYS] = ArrayRecord({k: Array(v) for k, v in weights.items()})
    return found


def started(study: Study) -> tuple[Weights, Transform, dict[str, Any]]:
    transform = fit(study)
    config = {records.TRANSFORM: transform.to_json(), records.ROUND: 2}
    return first_weights(study, transform), transform, config


def arrays(message: Message) -> dict[str, Any]:
    record = message.content.array_records[records.ARRAYS]
    return {key: array.numpy() for key, array in record.items()}


def test_a_site_introduces_itself_by_name_and_says_no_more() -> None:
    study = small_study()
    app = build_client_app(lambda _context: a_site(study))
    answer = ask(app, records.INTRODUCE, content(study))
    assert dict(answer.content) == {records.CONFIG: ConfigRecord({records.SITE: "site-1"})}
    assert answer.metadata.src_node_id == NODE


def test_statistics_are_the_sites_own() -> None:
    study = small_study(preprocess={"standardise": "federated"}, categorical=1)
    site = a_site(study)
    app = build_client_app(lambda _context: site)
    answer = ask(app, records.STATISTICS, content(study))
    expected = a_site(study).statistics()
    assert set(answer.content) == {records.ARRAYS, records.CONFIG}
    for name, value in expected.to_arrays().items():
        assert (arrays(answer)[name] == value).all()
    config = answer.content.config_records[records.CONFIG]
    assert dict(config) == {records.LEVELS: expected.levels_json}


@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_training_is_the_sites_own(mu: float) -> None:
    study = small_study()
    weights, transform, config = started(study)
    app = build_client_app(lambda _context: a_site(study))
    answer = ask(app, records.TRAIN, content(study, weights, **{**config, records.PROXIMAL_MU: mu}))
    expected = a_site(study).train(weights, transform, round_number=2, proximal_mu=mu)
    assert list(arrays(answer)) == list(expected)
    for name, value in expected.items():
        assert (arrays(answer)[name] == value).all()
    assert set(answer.content) == {records.ARRAYS, records.METRICS}
    assert answer.content.metric_records[records.METRICS] == MetricRecord({records.WEIGHT: 1.0})


@pytest.mark.parametrize(("min_cell", "released"), [(1, 1.0), (50, 0.0)])
def test_evaluation_gives_counts_or_nothing(min_cell: int, released: float) -> None:
    study = small_study(evaluation={"min_cell": min_cell})
    weights, transform, config = started(study)
    app = build_client_app(lambda _context: a_site(study))
    answer = ask(app, records.EVALUATE, content(study, weights, **config))
    metrics = answer.content.metric_records[records.METRICS]
    assert dict(metrics) == {records.WEIGHT: 1.0, records.RELEASED: released}
    expected = a_site(study).evaluate(weights, transform, round_number=2)
    assert (expected is None) == (released == 0.0)
    assert set(arrays(answer)) == ({"hist", "decisions"} if expected is not None else set())


@pytest.mark.parametrize("kind", ["query.introduce", "query.statistics", "train", "evaluate"])
@pytest.mark.parametrize("said", ["", "0" * 64, 7, None])
def test_a_message_about_another_study_is_refused(kind: str, said: Any) -> None:
    study = small_study()
    calls: list[str] = []

    class Watched:
        """Refuses to be used."""

        name = "site-1"

        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            raise AssertionError(name)

    site = cast("Site", Watched())
    vars(site)["study"] = study
    app = build_client_app(lambda _context: site)
    config = ConfigRecord({} if said is None else {records.STUDY_HASH: said})
    answer = ask(app, kind, RecordDict({records.CONFIG: config}))
    assert answer.has_error()
    assert answer.error.code == 3
    assert "another study" in str(answer.error.reason)
    assert calls == []


def test_the_study_of_a_simulation_may_differ_in_its_simulation_section() -> None:
    study = small_study()
    section = {"sites": ["a.toml"], "compare": ["local"]}
    app = build_client_app(lambda _context: a_site(small_study(simulation=section)))
    assert not ask(app, records.INTRODUCE, content(study)).has_error()


@pytest.mark.parametrize("refusal", [StudyError("no", hint="x"), TrainingError("no", hint="y")])
def test_a_refusal_crosses_as_its_exit_code_and_its_line(refusal: FedwardError) -> None:
    def find(_context: Context) -> Site:
        raise refusal

    answer = ask(build_client_app(find), records.INTRODUCE, content(small_study()))
    assert (answer.error.code, answer.error.reason) == (refusal.exit_code, str(refusal))
    assert not answer.has_content()


@pytest.mark.parametrize("error", [ValueError("secret 42"), KeyError("secret"), MemoryError()])
def test_a_defect_is_neither_content_nor_a_refusal(error: Exception) -> None:
    """Its text may quote data: it must not travel."""

    def find(_context: Context) -> Site:
        raise error

    with pytest.raises(type(error)):
        ask(build_client_app(find), records.INTRODUCE, content(small_study()))


def test_divergence_crosses_without_anything_private() -> None:
    study = small_study(
        training={"learning_rate": 1e38, "local_epochs": 30}, model={"name": "mlp", "hidden": [4]}
    )
    weights, _, config = started(study)
    app = build_client_app(lambda _context: a_site(study))
    answer = ask(app, records.TRAIN, content(study, weights, **config))
    assert answer.error.code == 7
    reason = str(answer.error.reason)
    assert "diverged" in reason
    assert not any(character.isdigit() for character in reason)
    assert "\n" not in reason


def test_weights_that_do_not_fit_are_refused() -> None:
    study = small_study()
    weights, _, config = started(study)
    app = build_client_app(lambda _context: a_site(study))
    for wrong in (
        {**weights, "more": np.zeros(2, np.float32)},
        {name: value[..., None] for name, value in weights.items()},
        {name: np.full_like(value, np.nan) for name, value in weights.items()},
    ):
        answer = ask(app, records.TRAIN, content(study, wrong, **config))
        assert answer.error.code == 8


def test_a_message_without_a_study_is_refused() -> None:
    app = build_client_app(lambda _context: a_site(small_study()))
    assert ask(app, records.INTRODUCE, RecordDict()).error.code == 3


def spoilt() -> list[RecordDict]:
    study = small_study()
    weights, _, config = started(study)
    bad = Array("float32", (3,), "numpy.ndarray", b"this is not an array")
    unreadable = content(study, weights, **config)
    unreadable[records.ARRAYS] = ArrayRecord({"weight": bad, "bias": bad})
    return [
        content(study),
        content(study, weights),
        content(study, None, **config),
        content(study, weights, **{**config, records.TRANSFORM: "{"}),
        content(study, weights, **{**config, records.TRANSFORM: 3}),
        content(study, weights, **{**config, records.ROUND: "first"}),
        unreadable,
    ]


@pytest.mark.parametrize("case", range(7))
@pytest.mark.parametrize("kind", [records.TRAIN, records.EVALUATE])
def test_a_message_that_cannot_be_read_is_refused_and_costs_nothing(kind: str, case: int) -> None:
    site = a_site(small_study())
    answer = ask(build_client_app(lambda _context: site), kind, spoilt()[case])
    assert answer.has_error()
    assert answer.error.code != 1
    assert site.spending.charges == ()


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (DataError("age has 3 bad cells", hint="look"), "the site knows why"),
        (PrivacyError("epsilon would be 7.04", hint="less noise"), "the site knows why"),
        (TrainingError("training diverged", hint="lower it"), "training diverged: lower it"),
    ],
)
def test_a_server_is_not_told_what_was_found_in_the_data(refusal: Any, told: str) -> None:
    study = small_study()

    def refuse(_context: Context) -> Site:
        raise refusal

    answer = ask(build_client_app(refuse), records.INTRODUCE, content(study))
    assert answer.error.code == refusal.exit_code
    assert told in str(answer.error.reason)
    assert not any(digit in str(answer.error.reason) for digit in "0123456789")
    own = ask(build_client_app(refuse, disclose=True), records.INTRODUCE, content(study))
    assert own.error.reason == str(refusal)
