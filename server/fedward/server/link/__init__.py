"""The server's side of the link: who may call, what waits for whom, and a Flower `Grid` over it.

`mailbox` holds tasks and replies between the threads of runs and the service; `presence` knows who
is connected; `peers` who is calling; `service` answers calls; `serve` is the service as a whole;
`grid` is what the unchanged `ServerApp` sees.
"""

import fedward.common.wire  # noqa: F401  (before anything loads gRPC: no TLS but 1.3)
