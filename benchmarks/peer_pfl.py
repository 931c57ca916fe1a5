"""A workload on pfl-research, as its documentation advises for speed: prints JSON.

FederatedAveraging on a SimulatedBackend over all users, weighted equally; user data in memory as
`Dataset` ("the fastest"), made once, so that batches are kept from round to round; no evaluation
after the first round, no metrics sent on, and no callback but one that notes the time. With more
than one process, `torchrun` starts them and pfl-research divides the users among them.

pfl-research takes the rows in the same order in every epoch; the others shuffle.

    .venv-peers/bin/python benchmarks/peer_pfl.py FOLDER [PROCESSES]
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from peer_data import Rows, module_of, read, tell
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional


class Classifier(nn.Module):
    """The model as pfl-research wants it: it knows its loss."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        """The mean over a batch."""
        return functional.binary_cross_entropy_with_logits(self.layers(inputs), target)

    def metrics(self, inputs: Tensor, target: Tensor) -> dict[str, Weighted]:
        """Of the evaluation that comes with the first round."""
        return {"loss": Weighted(float(self.loss(inputs, target)) * len(target), len(target))}


class Clock(TrainingProcessCallback[Any]):  # type: ignore[misc]
    """Notes when training began and when each round was over."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Before the first round."""
        del model
        self.at.append(time.perf_counter())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """After each round."""
        del aggregate_metrics, model, central_iteration
        self.at.append(time.perf_counter())
        return False, Metrics()


def federated(rows: Rows) -> FederatedDataset:
    """All users; each is asked once in a round."""
    users = [
        Dataset((inputs, target), user_id=str(index))
        for index, (inputs, target) in enumerate(zip(rows.inputs, rows.target, strict=True))
    ]
    sampler = get_user_sampler("minimize_reuse", list(range(len(users))))
    return FederatedDataset(users.__getitem__, sampler)


def main(folder: str) -> None:
    """Run a workload."""
    torch.set_num_threads(1)
    rows = read(folder)
    load, data = rows.load, federated(rows)
    # Every process must draw the same users and start from the same weights.
    np.random.seed(load["seed"])  # noqa: NPY002  (what pfl-research draws from)
    torch.manual_seed(load["seed"])
    module, clock = Classifier(module_of(rows)), Clock()
    create = partial(torch.optim.SGD, foreach=False)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=load["rounds"],
            evaluation_frequency=load["rounds"] + 1,
            train_cohort_size=load["sites"],
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByUser()]),
        PyTorchModel(module, create, create(module.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=load["batch_size"],
            local_num_epochs=load["epochs"],
            local_learning_rate=load["learning_rate"],
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    if os.environ.get("RANK", "0") == "0":
        tell(rows, module.layers, [after - before for before, after in pairwise(clock.at)])


if __name__ == "__main__":
    if len(sys.argv) > 2:
        launcher = ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={sys.argv[2]}"]
        # As --standalone does it, and listening on this machine alone.
        meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost"]
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        os.execv(  # noqa: S606  (ourselves, in several processes)
            sys.executable, [sys.executable, *launcher, *meeting, __file__, sys.argv[1]]
        )
    main(sys.argv[1])
