"""The hospital's side of the link: it opens the one connection, outwards, and keeps it.

`link` is the whole; `connection` opens a channel, `greeting` begins a session on it, `transfers`
moves bodies, `assignments` says what a task is and who does it, `jobs` follows each task from its
offer to its receipt, `upkeep` keeps roster and certificate fresh, `backoff` says how long to wait.
Neither torch nor flwr is loaded here.
"""
