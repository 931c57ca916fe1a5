"""What fedward relies on in flwr 1.41: if one of these fails after an upgrade, read it first."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from tests.simulations.ray_extra import HAS_RAY, WITHOUT_RAY

from fedward.client.worker.flower_internals import NODE_ID, another_identity
from fedward.client.worker.flower_internals import identify as identify_worker
from fedward.common import records
from fedward.server.arrays import ResidentArray
from fedward.server.flower_app import FOLDER, SITES, STUDY
from fedward.server.flower_internals import SERVER_NODE_ID, Run, identify, quieten
from fedward.server.link.grid import GrpcGrid
from fedward.server.replies import SelectedGrid
from fedward.server.strategies import make_strategy, restore_state, strategy_state
from fedward.simulations.engines.flaky import FlakyGrid
from fedward.simulations.engines.loop import LoopGrid
from fedward.simulations.fakes import small_study

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = {"flwr.app", "flwr.serverapp", "flwr.clientapp"}


def flower_imports() -> Iterator[tuple[str, str, Path]]:
    for portion in ("common", "client", "server", "simulations"):
        for path in sorted((ROOT / portion).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr"):
                    for alias in node.names:
                        yield str(node.module), alias.name, path.relative_to(ROOT)
                elif isinstance(node, ast.Import):
                    assert not any(alias.name.startswith("flwr") for alias in node.names), path


IMPORTS = sorted(set(flower_imports()))


def test_the_version_is_the_one_that_was_read() -> None:
    assert metadata.version("flwr").split(".")[:2] == ["1", "41"]


USED = {
    "flwr.app": {
        "Array",
        "ArrayRecord",
        "ConfigRecord",
        "Context",
        "Error",
        "Message",
        "MetricRecord",
        "RecordDict",
    },
    "flwr.clientapp": {"ClientApp"},
    "flwr.serverapp": {"Grid", "ServerApp", "strategy"},
    # Not public. Each has a test of what we take it for below; Ray's in test_ray_contract.py.
    "flwr.simulation.ray_transport.ray_actor": {
        "VirtualClientEngineActor",
        "pool_size_from_resources",
    },
    "flwr.supercore.run": {"Run"},
    "flwr.supercore.task_identity": {"TaskIdentity"},
}
"""Everything of flwr that fedward uses; whoever adds to it adds a test of what it relies on."""


def test_nothing_else_of_flwr_is_used() -> None:
    found: dict[str, set[str]] = {}
    for module, name, _ in IMPORTS:
        found.setdefault(module, set()).add(name)
    assert found == USED


def test_an_import_of_flwr_inside_a_function_would_be_found() -> None:
    assert any(path.name == "flower_node.py" for _, _, path in IMPORTS)
    source = "def f():\n    from flwr.proto.node_pb2 import NodeInfo\n"
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in nodes] == ["flwr.proto.node_pb2"]


@pytest.mark.parametrize(("module", "name"), sorted({(m, n) for m, n, _ in IMPORTS}))
def test_every_symbol_that_we_import_exists(module: str, name: str) -> None:
    if module.startswith("flwr.simulation.") and not HAS_RAY:
        pytest.skip(WITHOUT_RAY)
    assert hasattr(importlib.import_module(module), name)


def test_what_is_not_public_is_imported_in_one_place() -> None:
    private = {str(path) for module, _, path in IMPORTS if module not in PUBLIC}
    assert private <= {
        "server/fedward/server/flower_internals.py",
        "client/fedward/client/worker/flower_internals.py",
        "simulations/fedward/simulations/engines/cluster/internals.py",
    }


# --- messages -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _identity() -> None:
    identify(run_id=5)


def question(**options: Any) -> Message:
    return Message(RecordDict(), dst_node_id=9, message_type="train", **options)


def test_identity_is_read_when_a_message_is_made() -> None:
    identify(run_id=6, node_id=4, task_id=2)
    message = question()
    assert (message.metadata.run_id, message.metadata.src_node_id) == (6, 4)
    assert message.metadata.src_task_id == 2
    identify(run_id=5)
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (5, 1, 0)
    assert question().metadata.src_node_id == SERVER_NODE_ID


def in_another_thread(work: Callable[[], Any]) -> Any:
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(work()))
    thread.start()
    thread.join()
    return seen[0]


def test_each_run_of_a_server_has_its_identity_in_its_own_thread() -> None:
    def other() -> int:
        identify(run_id=9)
        return question().metadata.run_id

    identify(run_id=8)
    assert in_another_thread(lambda: question().metadata.run_id) == 8
    assert in_another_thread(other) == 9
    assert question().metadata.run_id == 8


def test_a_workers_identity_does_not_stay_where_flower_has_its_own() -> None:
    """In a thread of its own: in this one the server's has been said, which goes before."""

    def work() -> tuple[int, int]:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 11, 12, 13
        with another_identity():
            identify_worker()
            inside = question().metadata.src_node_id
        return inside, question().metadata.src_node_id

    assert in_another_thread(work) == (NODE_ID, 12)


def test_what_a_carrier_sets_of_a_messages_metadata_is_kept_where_we_set_it() -> None:
    message = question()
    for name, value in {"message_id": "m", "run_id": 77, "src_node_id": 78}.items():
        assert f"_{name}" in message.metadata.__dict__
        message.metadata.__dict__[f"_{name}"] = value
        assert getattr(message.metadata, name) == value
    answer = Message(RecordDict(), reply_to=message)
    assert answer.metadata.reply_to_message_id == "m"
    assert answer.metadata.run_id == 77
    assert answer.metadata.dst_node_id == 78


def test_message_takes_what_we_give_it() -> None:
    message = Message(RecordDict(), 9, "query.introduce", group_id="g", ttl=3.0)
    assert message.metadata.dst_node_id == 9
    assert message.metadata.message_type == "query.introduce"
    assert message.metadata.group_id == "g"
    assert message.has_content()
    assert not message.has_error()


def test_reply_swaps_sender_and_receiver() -> None:
    asked = question()
    answer = Message(RecordDict(), reply_to=asked)
    assert answer.metadata.src_node_id == asked.metadata.dst_node_id
    assert answer.metadata.dst_node_id == asked.metadata.src_node_id
    assert answer.metadata.run_id == asked.metadata.run_id
    assert answer.metadata.message_type == "train"


def test_error_reply_carries_code_and_reason_and_no_content() -> None:
    answer = Message(Error(7, "diverged"), reply_to=question())
    assert answer.has_error()
    assert not answer.has_content()
    assert (answer.error.code, answer.error.reason) == (7, "diverged")
    with pytest.raises(ValueError, match="content is None"):
        _ = answer.content


def test_content_can_be_replaced() -> None:
    answer = Message(RecordDict(), reply_to=question())
    answer.content = RecordDict({"config": ConfigRecord({"a": 1})})
    assert answer.content.config_records["config"]["a"] == 1


def test_records_compare_by_content() -> None:
    def content(value: float) -> RecordDict:
        return RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(np.array([value], np.float32))}),
                "metrics": MetricRecord({"x": 1.0}),
            }
        )

    assert content(1.0) == content(1.0)
    assert content(1.0) != content(2.0)
    assert content(1.0) != RecordDict()


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_come_back_with_name_order_type_and_shape(shape: tuple[int, ...]) -> None:
    values: dict[str, np.ndarray[Any, Any]] = {
        "z": np.ones(shape, np.float32),
        "a": np.zeros(shape, np.float64),
    }
    record = ArrayRecord({name: Array(value) for name, value in values.items()})
    assert list(record) == ["z", "a"]
    for name, array in record.items():
        assert array.numpy().dtype == values[name].dtype
        assert array.numpy().shape == shape


def test_arrays_are_read_without_pickle() -> None:
    array = Array("object", (1,), "numpy.ndarray", b"\x93NUMPY garbage")
    with pytest.raises(ValueError):  # noqa: PT011  (its words are numpy's)
        array.numpy()


def test_a_record_keeps_the_arrays_it_is_given_one_by_one_and_copies_those_of_a_dictionary() -> (
    None
):
    """The reason why our arrays are put into records item by item."""
    array = ResidentArray(np.ones(3, np.float32))
    record = ArrayRecord()
    record["w"] = array
    assert record["w"] is array
    assert RecordDict({"arrays": record})["arrays"] is record
    assert type(ArrayRecord({"w": array})["w"]) is Array


def test_strategies_look_at_an_array_by_its_numpy_and_never_at_its_bytes() -> None:
    class Mute(ResidentArray):
        @property
        def data(self) -> bytes:  # type: ignore[override]
            raise AssertionError("somebody wanted bytes")

    for algorithm in ALGORITHMS:
        made = strategy(algorithm)
        grid = SelectedGrid(LoopGrid(ClientApp(), {}), [2])
        start = ArrayRecord()
        start["w"] = Mute(np.zeros(2, np.float32))
        made.configure_train(1, start, ConfigRecord(), grid)
        content = reply(1.0).content
        content.array_records[records.ARRAYS]["w"] = Mute(np.ones(2, np.float32))
        answer = Message(content, dst_node_id=1, message_type="train")
        arrays, _ = made.aggregate_train(1, [answer])
        assert arrays is not None


# --- bundle -------------------------------------------------------------------------------------

BUNDLE = ROOT / "deploy" / "flower-app"


def test_the_bundle_holds_no_code_and_names_apps_that_exist(tmp_path: Path) -> None:
    folder = tmp_path / "fedward-app"
    shutil.copytree(BUNDLE, folder)
    flwr = Path(sys.executable).with_name("flwr")
    home = {**os.environ, "FLWR_HOME": str(tmp_path / "home")}
    build = [flwr, "build", "--app", folder]
    subprocess.run(build, cwd=tmp_path, env=home, check=True, capture_output=True)
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        names = set(archive.namelist())
    assert names <= {"pyproject.toml", "README.md", ".info/CONTENT"}
    config = tomllib.loads((BUNDLE / "pyproject.toml").read_text())
    assert config["project"]["dependencies"] == []
    components = config["tool"]["flwr"]["app"]["components"]
    for name, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, _, attribute = components[name].partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), kind)


def test_the_bundles_settings_are_those_that_the_server_reads() -> None:
    config = tomllib.loads((BUNDLE / "pyproject.toml").read_text())
    assert set(config["tool"]["flwr"]["app"]["config"]) == {STUDY, FOLDER, SITES}


# --- apps ---------------------------------------------------------------------------------------


def test_client_app_routes_by_category_and_action() -> None:
    app, seen = ClientApp(), []

    @app.query("introduce")
    def _introduce(message: Message, context: Context) -> Message:
        seen.append(message.metadata.message_type)
        return Message(RecordDict(), reply_to=message)

    @app.train("default")
    def _train(message: Message, context: Context) -> Message:
        seen.append(message.metadata.message_type)
        return Message(RecordDict(), reply_to=message)

    context = Context(5, 9, {"site": "x"}, RecordDict(), {})
    assert context.node_config["site"] == "x"
    for kind in (records.INTRODUCE, records.TRAIN):
        app(Message(RecordDict(), dst_node_id=9, message_type=kind), context)
    assert seen == [records.INTRODUCE, records.TRAIN]
    with pytest.raises(ValueError, match="No query function"):
        app(Message(RecordDict(), dst_node_id=9, message_type=records.STATISTICS), context)


def test_server_app_hands_over_the_grid_and_lets_errors_through() -> None:
    app, seen = ServerApp(), []

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        seen.append(grid)
        raise KeyError("mine")

    grid = LoopGrid(ClientApp(), {})
    with pytest.raises(KeyError, match="mine"):
        app(grid, Context(5, 1, {}, RecordDict(), {}))
    assert seen == [grid]


# --- grid ---------------------------------------------------------------------------------------

GRID = {
    "set_run",
    "run",
    "create_message",
    "get_node_ids",
    "push_messages",
    "pull_messages",
    "send_and_receive",
}


def test_a_grid_has_these_abstract_methods_and_no_others() -> None:
    assert Grid.__abstractmethods__ == GRID


@pytest.mark.parametrize("kind", [LoopGrid, FlakyGrid, GrpcGrid])
@pytest.mark.parametrize("name", sorted(GRID - {"run"}))
def test_our_grids_have_the_signatures_of_flowers(kind: type[Grid], name: str) -> None:
    def parameters(owner: type[Grid]) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(getattr(owner, name)).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    assert parameters(kind) == parameters(Grid)  # type: ignore[type-abstract]


def test_a_run_can_be_made_empty() -> None:
    grid = SelectedGrid(LoopGrid(ClientApp(), {}), [])
    grid.set_run(Run.create_empty(77))
    assert grid.run.run_id == 77


# --- strategies ---------------------------------------------------------------------------------

ALGORITHMS: list[dict[str, Any]] = [
    {"name": "fedavg"},
    {"name": "fedprox", "mu": 0.1},
    {"name": "fedadam", "server_learning_rate": 0.1},
    {"name": "fedadam", "server_learning_rate": 0.1, "bias_correction": False},
    {"name": "fedyogi", "server_learning_rate": 0.1},
    {"name": "fedadagrad", "server_learning_rate": 0.1},
    {"name": "fedavgm"},
    {"name": "fedmedian"},
    {"name": "fedtrimmedavg"},
]


def strategy(algorithm: dict[str, Any]) -> flower.FedAvg:
    return make_strategy(
        small_study(algorithm=algorithm), evaluate_metrics=lambda _contents, _by: MetricRecord()
    )


METHODS = {
    "configure_train": ["self", "server_round", "arrays", "config", "grid"],
    "configure_evaluate": ["self", "server_round", "arrays", "config", "grid"],
    "aggregate_train": ["self", "server_round", "replies"],
    "aggregate_evaluate": ["self", "server_round", "replies"],
}


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_strategies_have_the_four_methods(algorithm: dict[str, Any]) -> None:
    kind = type(strategy(algorithm))
    for name, parameters in METHODS.items():
        assert list(inspect.signature(getattr(kind, name)).parameters) == parameters


def reply(value: float) -> Message:
    content = RecordDict(
        {
            records.ARRAYS: ArrayRecord({"w": Array(np.array([value, 1.0], np.float32))}),
            records.METRICS: MetricRecord({records.WEIGHT: 1.0}),
        }
    )
    return Message(content, reply_to=question())


def one_round(made: flower.FedAvg, number: int) -> ArrayRecord:
    grid = SelectedGrid(LoopGrid(ClientApp(), {}), [2, 3])
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    sent = list(made.configure_train(number, start, ConfigRecord(), grid))
    assert {message.metadata.dst_node_id for message in sent} == {2, 3}
    for message in sent:
        config = message.content.config_records[records.CONFIG]
        assert config[records.ROUND] == number
        assert message.metadata.message_type == records.TRAIN
    arrays, _ = made.aggregate_train(number, [reply(1.0), reply(3.0)])
    assert arrays is not None
    return arrays


STATE = {
    "fedadam": {"m_t/w", "v_t/w"},
    "fedyogi": {"m_t/w", "v_t/w"},
    "fedadagrad": {"m_t/w", "v_t/w"},
    "fedavgm": {"momentum_vector/000000"},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_strategies_keep_their_state_where_we_look_and_nowhere_else(
    algorithm: dict[str, Any],
) -> None:
    made = strategy(algorithm)
    before = vars(made).copy()
    one_round(made, 1)
    state = strategy_state(made)
    assert set(state) == STATE.get(algorithm["name"], set())
    moved = {name for name, value in vars(made).items() if value is not before.get(name)}
    assert moved <= {"m_t", "v_t", "momentum_vector", "current_arrays"}
    other = strategy(algorithm)
    restore_state(other, state)
    for name, value in strategy_state(other).items():
        assert (value == state[name]).all()


def test_flower_tells_proximal_clients_their_mu() -> None:
    made = strategy({"name": "fedprox", "mu": 0.25})
    grid = SelectedGrid(LoopGrid(ClientApp(), {}), [2])
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    (message,) = made.configure_train(1, start, ConfigRecord(), grid)
    assert message.content.config_records[records.CONFIG][records.PROXIMAL_MU] == 0.25


def test_flower_waits_for_nodes_for_ever_so_we_never_show_it_none() -> None:
    """The reason why the round loop counts the sites itself."""
    from flwr.serverapp.strategy import strategy_utils

    assert "while len(all_nodes" in inspect.getsource(strategy_utils.sample_nodes)


def test_flowers_log_is_quiet_after_quieten() -> None:
    import logging

    quieten()
    assert not logging.getLogger("flwr").isEnabledFor(logging.INFO)
