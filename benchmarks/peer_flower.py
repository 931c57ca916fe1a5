"""A workload on Flower's simulation runtime (Ray), as its documentation writes an app: prints JSON.

A ServerApp with FedAvg over all clients, a ClientApp that trains, one client on each processor at a
time, one thread each. To Flower's advantage a worker reads all rows once and keeps one module; the
local steps are those of `bare_loop.py`; nothing is evaluated between rounds; nothing is logged.

`flwr run` starts a server, packs the app and ends in the same simulation runtime as
`run_simulation`, which is called here: rounds cost the same, the start less.

    .venv-peers/bin/python benchmarks/peer_flower.py FOLDER
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import cache
from itertools import pairwise

import torch
from bare_loop import Local, plain
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peer_data import Rows, module_of, read, tell
from torch import nn

client = ClientApp()


@cache
def prepared(folder: str) -> tuple[Rows, nn.Sequential, Local]:
    """The rows, a module and its local steps; made once in each worker."""
    torch.set_num_threads(1)
    rows = read(folder)
    module = module_of(rows)
    return rows, module, plain(module, rows.load)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train at one client, from the weights that came."""
    rows, module, local = prepared(str(message.content.config_records["config"]["folder"]))
    module.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    site = int(context.node_config["partition-id"])
    local(rows.inputs[site], rows.target[site])
    reply = RecordDict()
    reply["arrays"] = ArrayRecord(module.state_dict())
    reply["metrics"] = MetricRecord({"num-examples": len(rows.target[site])})
    return Message(reply, reply_to=message)


def main() -> None:
    """Run a workload."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder = sys.argv[1]
    torch.manual_seed(read(folder).load["seed"])
    rows, module, _ = prepared(folder)
    server = ServerApp()
    at: list[float] = []

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=rows.load["sites"])
        result = strategy.start(
            grid,
            ArrayRecord(module.state_dict()),
            num_rounds=rows.load["rounds"],
            train_config=ConfigRecord({"folder": folder}),
            evaluate_fn=lambda *_: at.append(time.perf_counter()),
        )
        module.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        client,
        num_supernodes=rows.load["sites"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": len(os.sched_getaffinity(0)), "log_to_driver": False},
        },
    )
    tell(rows, module, [after - before for before, after in pairwise(at)])


if __name__ == "__main__":
    # The app of an imported module reaches the workers as a name; that of this one would be sent
    # whole with every message.
    import peer_flower

    peer_flower.main()
