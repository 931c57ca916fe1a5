"""The server as a Flower app: the round loop over whatever `Grid` the carrier gives it.

`build_server_app` makes one for a run that the caller describes. `app` is the one that a code-less
bundle names (`deploy/flower-app`): it reads from the run's configuration what is to be run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedward.common.errors import StudyError
from fedward.common.files import write_atomic
from fedward.common.preprocess import Transform
from fedward.common.study import Study, load_study
from fedward.common.tensors import Weights, safetensors_pieces
from fedward.server.checkpoints import CheckpointFolder, Checkpoints, RunState
from fedward.server.first_weights import first_weights_in_subprocess
from fedward.server.flower_internals import quieten
from fedward.server.history import RoundRecord
from fedward.server.preparation import FirstWeights, first_weights
from fedward.server.rounds import Observer, Outcome, Rounds

STUDY = "study"
FOLDER = "folder"
SITES = "sites"
_LOOK_S = 1.0


def build_server_app(
    study: Study,
    *,
    checkpoints: Checkpoints,
    observer: Observer,
    on_outcome: Callable[[Outcome], None],
    make_weights: FirstWeights = first_weights,
    should_stop: Callable[[], bool] = lambda: False,
    resumed_after: int | None = None,
) -> ServerApp:
    """Make the server app for one run of a study.

    Args:
        study: the protocol.
        checkpoints: where the run's state is kept; a run that is found there is continued.
        observer: follows the run.
        on_outcome: is given the result; a Flower app itself returns nothing.
        make_weights: makes the weights that training starts from.
        should_stop: is asked before each round whether the run shall stop there.
        resumed_after: see `Rounds`.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  (Flower's signature)
        rounds = Rounds(
            study,
            grid,
            checkpoints=checkpoints,
            observer=observer,
            make_weights=make_weights,
            should_stop=should_stop,
            resumed_after=resumed_after,
        )
        on_outcome(rounds.run())

    return app


app = ServerApp()
"""The app that a code-less bundle names, for Flower's own SuperLink."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run's configuration names, or continue it.

    Raises:
        FedwardError: the configuration is incomplete, or what ends the run; see `Rounds.run`.
    """
    quieten()
    study, folder = load_study(_path(context.run_config, STUDY)), _path(context.run_config, FOLDER)
    wanted = context.run_config.get(SITES, 0)
    sites = max(wanted if isinstance(wanted, int) else 0, study.aggregation.min_sites)
    wait_for_nodes(grid, sites, deadline_s=study.aggregation.deadline_s)
    outcome = Rounds(
        study,
        grid,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        observer=Unwatched(),
        make_weights=first_weights_in_subprocess,
    ).run()
    write_outcome(folder, outcome)


def wait_for_nodes(
    grid: Grid,
    nodes: int,
    *,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Let nodes connect before they are asked who they are; no longer than the deadline."""
    until = clock() + deadline_s
    while len(list(grid.get_node_ids())) < nodes and clock() < until:
        sleep(_LOOK_S)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Leave a finished run in a folder: weights, preprocessing, and what happened in each round.

    Raises:
        OutputError: the disk refuses.
    """
    history = [asdict(record) for record in outcome.history]
    write_atomic(folder / "weights.safetensors", safetensors_pieces(outcome.weights))
    write_atomic(folder / "preprocessing.json", outcome.transform.to_json())
    write_atomic(folder / "history.json", json.dumps(history, indent=1) + "\n")


def _path(config: Mapping[str, Any], key: str) -> Path:
    value = config.get(key)
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise StudyError(
            f"the run's configuration names no {key}",
            hint=f"give its whole path: flwr run … --run-config '{key}=\"/path\"'",
        )
    return Path(value)


class Unwatched:
    """An observer for runs that nobody follows: their checkpoints tell everything."""

    def on_prepared(self, transform: Transform, weights: Weights) -> dict[str, Any]:
        """Nothing to note."""
        del transform, weights
        return {}

    def on_resumed(self, state: RunState) -> None:
        """Nothing to take back."""

    def on_evaluating(self, number: int) -> None:
        """Nothing to show."""

    def on_round(self, record: RoundRecord, weights: Weights) -> dict[str, Any]:
        """Nothing to note."""
        del record, weights
        return {}
