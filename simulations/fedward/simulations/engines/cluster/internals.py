"""What is not public of Flower's simulation runtime and of Ray, in one place; contract-tested.

Ray starts with whatever its environment says when it is imported first. What this process decides
later, for one session, is told it here.
"""

from __future__ import annotations

import grpc
from flwr.simulation.ray_transport.ray_actor import (
    VirtualClientEngineActor as VirtualClientEngineActor,
)
from flwr.simulation.ray_transport.ray_actor import (
    pool_size_from_resources as pool_size_from_resources,
)
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config


def stay_on_loopback(stay: bool) -> None:
    """Whether Ray's processes listen on 127.0.0.1 alone, or where other machines reach them.

    Ray rewrites 127.0.0.1 to the machine's address, except where it cannot be a cluster.
    """
    ray_constants.ENABLE_RAY_CLUSTER = not stay


def read_token_anew() -> None:
    """Have Ray look again into the environment for how its processes prove who they are."""
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def speaks(address: str, timeout_s: float) -> bool:
    """Whether what is at an address speaks as Ray does: else Ray itself would ask for minutes."""
    channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout_s)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


def end_what_started(error: BaseException) -> None:
    """End the processes of a start that failed: Ray itself leaves them until this process ends.

    Args:
        error: that `ray.init` raised.
    """
    frame = error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if isinstance(owner, Node):
            owner.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            return
        frame = frame.tb_next
