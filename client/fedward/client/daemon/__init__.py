"""The daemon: what a hospital runs. It connects outwards, and lets others compute.

`daemon` answers tasks, `watch` notices what the stewards decided and what was changed on disk,
`desk` asks and tells the server about it, `witness` has ledgers' ends signed, `record` keeps the
audit log and what the server showed of its own, `status` says how things are, `service` puts it
all together. Neither torch nor flwr is loaded here: that is the worker's.
"""
