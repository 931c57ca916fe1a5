"""The server as a Flower app: the round loop over whatever `Grid` the carrier gives it."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedward.common.study import Study
from fedward.server.checkpoints import Checkpoints
from fedward.server.preparation import FirstWeights, first_weights
from fedward.server.rounds import Observer, Outcome, Rounds


def build_server_app(
    study: Study,
    *,
    checkpoints: Checkpoints,
    observer: Observer,
    on_outcome: Callable[[Outcome], None],
    make_weights: FirstWeights = first_weights,
    should_stop: Callable[[], bool] = lambda: False,
) -> ServerApp:
    """Make the server app for one run of a study.

    Args:
        study: the protocol.
        checkpoints: where the run's state is kept; a run that is found there is continued.
        observer: follows the run.
        on_outcome: is given the result; a Flower app itself returns nothing.
        make_weights: makes the weights that training starts from.
        should_stop: is asked before each round whether the run shall stop there.
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
        )
        on_outcome(rounds.run())

    return app
