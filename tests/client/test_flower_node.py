"""A hospital as a node of Flower's own carrier answers as its daemon does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tests.e2e.flower_world import STUDY, make_hospital

from fedward.client.flower_app import app
from fedward.client.home import SiteFolder
from fedward.common import records
from fedward.common.errors import PolicyError, RoundError, SiteConfigError, StateError, StudyError
from fedward.common.lock import held
from fedward.common.preprocess import fit
from fedward.common.study import Study, load_study, study_hash
from fedward.server.first_weights import first_weights

RUN, NODE = 77, 1234


@pytest.fixture
def study(tmp_path: Path) -> Study:
    text = STUDY.replace('weights = "size"', 'weights = "equal"')
    preprocess = '[preprocess]\nstandardise = "bounds"\nimpute = "bounds"\n'
    (tmp_path / "study.toml").write_text(text + preprocess)
    return load_study(tmp_path / "study.toml")


def ask(home: SiteFolder | None, kind: str, study: Study, **config: Any) -> Message:
    """In a thread of its own, as in Flower's process: nobody has said there who we are."""
    content = RecordDict(
        {records.CONFIG: ConfigRecord({records.STUDY_HASH: study_hash(study), **config})}
    )
    if kind == records.TRAIN:
        weights = first_weights(study, fit(study))
        content[records.ARRAYS] = ArrayRecord({k: Array(v) for k, v in weights.items()})
        content.config_records[records.CONFIG][records.TRANSFORM] = fit(study).to_json()
    node: dict[str, Any] = {} if home is None else {"site": str(home.path)}

    def work() -> Message:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, NODE, 5
        message = Message(content, dst_node_id=NODE, message_type=kind)
        return app(message, Context(RUN, NODE, node, RecordDict(), {}))

    return in_a_thread(work)


def in_a_thread(work: Callable[[], Message]) -> Message:
    answers: list[Message] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join()
    return answers[0]


def test_it_says_its_name_and_trains_and_gives_the_same_answer_again(
    study: Study, tmp_path: Path
) -> None:
    home = make_hospital(tmp_path, "north", study)
    named = ask(home, records.INTRODUCE, study)
    assert named.content.config_records[records.CONFIG][records.SITE] == "north"
    first = ask(home, records.TRAIN, study, **{records.ROUND: 1})
    assert not first.has_error(), first.error
    assert first.metadata.src_node_id == NODE
    (reply,) = home.outbox.glob("*/0000001.*.reply")
    stamp = reply.stat().st_mtime_ns
    again = ask(home, records.TRAIN, study, **{records.ROUND: 1})
    assert reply.stat().st_mtime_ns == stamp
    one, other = (m.content.array_records[records.ARRAYS] for m in (first, again))
    for name in one:
        assert (one[name].numpy() == other[name].numpy()).all()
        assert np.isfinite(one[name].numpy()).all()


def refusal(message: Message) -> tuple[int, str]:
    assert message.has_error()
    return message.error.code, str(message.error.reason)


def test_a_study_that_was_not_approved_is_not_answered(study: Study, tmp_path: Path) -> None:
    home = make_hospital(tmp_path, "north", study, approved=False)
    for kind in (records.INTRODUCE, records.TRAIN):
        code, reason = refusal(ask(home, kind, study, **{records.ROUND: 1}))
        assert code == PolicyError.exit_code
        assert "has not approved the study" in reason
    assert not list(home.outbox.glob("*/*.reply"))


def test_another_study_than_the_one_that_is_here_is_not_answered(
    study: Study, tmp_path: Path
) -> None:
    home = make_hospital(tmp_path, "north", study)
    other = study.model_copy(
        update={"training": study.training.model_copy(update={"rounds": 1000})}
    )
    code, _ = refusal(ask(home, records.TRAIN, other, **{records.ROUND: 1}))
    assert code == StudyError.exit_code


def test_a_round_that_the_study_does_not_have_is_not_trained(study: Study, tmp_path: Path) -> None:
    home = make_hospital(tmp_path, "north", study)
    code, _ = refusal(ask(home, records.TRAIN, study, **{records.ROUND: 99}))
    assert code == RoundError.exit_code


def test_a_node_without_a_site_or_beside_a_running_daemon_refuses(
    study: Study, tmp_path: Path
) -> None:
    code, reason = refusal(ask(None, records.INTRODUCE, study))
    assert code == SiteConfigError.exit_code
    assert str(tmp_path) not in reason
    home = make_hospital(tmp_path, "north", study)
    with held(home.lock, who="a client"):
        code, _ = refusal(ask(home, records.INTRODUCE, study))
    assert code == StateError.exit_code
