"""What the engine `ray` takes from Flower's simulation runtime and from Ray that is not public."""

from __future__ import annotations

import inspect
from importlib import metadata
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from tests.simulations.ray_extra import needs_ray

from fedward.common import records
from fedward.server.flower_internals import identify

pytestmark = needs_ray


def test_ray_is_the_one_that_was_read() -> None:
    assert metadata.version("ray").split(".")[:2] == ["2", "55"]


def test_flowers_actor_runs_an_app_with_a_message_and_a_context() -> None:
    from fedward.simulations.engines.cluster.internals import VirtualClientEngineActor

    identify(run_id=5)
    app, context = ClientApp(), Context(5, 9, {}, RecordDict(), {})

    @app.query("introduce")
    def _introduce(message: Message, given: Context) -> Message:
        assert given is context
        return Message(RecordDict({"said": ConfigRecord()}), reply_to=message)

    asked = Message(RecordDict(), dst_node_id=9, message_type=records.INTRODUCE)
    name, answer, kept = VirtualClientEngineActor().run(lambda: app, asked, "a", context)
    assert (name, list(answer.content), kept) == ("a", ["said"], context)
    unknown = Message(RecordDict(), dst_node_id=9, message_type=records.TRAIN)
    with pytest.raises(Exception, match="No train function") as caught:
        VirtualClientEngineActor().run(lambda: app, unknown, "a", context)
    assert type(caught.value).__name__ == "ClientAppException"


def test_workers_are_counted_machine_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedward.simulations.engines.cluster.internals import pool_size_from_resources

    machines: list[dict[str, Any]] = [{"CPU": 3.0}, {}, {"CPU": 2.0}, {"memory": 1.0}]
    monkeypatch.setattr("ray.nodes", lambda: [{"Resources": found} for found in machines])
    assert pool_size_from_resources({"num_cpus": 1}) == 5
    machines[:] = [{"memory": 1.0}]
    with pytest.raises(ValueError, match="ActorPool is empty"):
        pool_size_from_resources({"num_cpus": 1})


def test_what_ray_is_told_after_its_import_is_where_it_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That its processes obey is seen in `test_ray_session.py`."""
    from ray._private import ray_constants
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._private.services import resolve_ip_for_localhost

    from fedward.simulations.engines.cluster.internals import read_token_anew, stay_on_loopback

    assert ray_constants.ENABLE_RAY_CLUSTER
    stay_on_loopback(True)
    assert resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    stay_on_loopback(False)
    assert ray_constants.ENABLE_RAY_CLUSTER
    with monkeypatch.context() as changed:
        changed.setenv("RAY_AUTH_MODE", "token")
        changed.setenv("RAY_AUTH_TOKEN", "a" * 64)
        read_token_anew()
        assert is_token_auth_enabled()
    read_token_anew()
    assert not is_token_auth_enabled()


def test_what_a_failed_start_left_is_found_in_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private.node import Node

    from fedward.simulations.engines.cluster.internals import end_what_started

    asked: list[dict[str, Any]] = []
    real = inspect.signature(Node.kill_all_processes)
    monkeypatch.setattr(
        Node, "kill_all_processes", lambda self, **how: asked.append(how) or real.bind(self, **how)
    )

    def start(self: Any) -> None:
        raise TimeoutError("it did not start")

    with pytest.raises(TimeoutError) as caught:
        start(object.__new__(Node))
    end_what_started(caught.value)
    assert len(asked) == 1
    end_what_started(ValueError("nothing was started"))
    assert len(asked) == 1
