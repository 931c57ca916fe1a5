"""How a service shows that it works: figures for Prometheus and an answer to "are you well?".

`endpoint` serves both over HTTP, on this machine only unless told otherwise; `health` collects what
is wrong. The figures themselves are `server.monitoring` and `client.monitoring`. Nothing here is
sent to anybody: a monitoring system of the own house asks.
"""
