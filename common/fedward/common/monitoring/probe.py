"""Ask a service on this machine whether it is well, at the port of its monitoring.

    python -m fedward.common.monitoring.probe 9464

For the health checks of containers, which have no other program for it. Ends with 0 if it is well,
with 1 if it is not or does not answer, with 2 if the port is missing.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Sequence

_PATIENCE_S = 8.0


def main(arguments: Sequence[str]) -> int:
    """The exit code for a port, given as the only argument."""
    if len(arguments) != 1 or not arguments[0].isdecimal() or not 0 < int(arguments[0]) < 65536:
        return 2
    connection = http.client.HTTPConnection("127.0.0.1", int(arguments[0]), timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/healthz")
        return int(connection.getresponse().status != http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
