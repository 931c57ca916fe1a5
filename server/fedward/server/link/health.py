"""gRPC's health check, for members only: whether the service answers, and nothing else."""

from __future__ import annotations

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from fedward.server.link.door import Context, Door

SERVICE = "fedward.link.v1.Link"


class Health(HealthServicer):  # type: ignore[misc]  # has no types
    """Answers `Check` for the link and for the server as a whole; there is no `Watch`.

    Args:
        door: that every call passes.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self.serving = True
        """Set to False while stopping."""

    async def Check(  # noqa: N802
        self, request: HealthCheckRequest, context: Context
    ) -> HealthCheckResponse:
        """Whether the service answers."""
        async with self._door.entered(context):
            if request.service not in ("", SERVICE):
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            known = HealthCheckResponse.ServingStatus
            return HealthCheckResponse(status=known.SERVING if self.serving else known.NOT_SERVING)
