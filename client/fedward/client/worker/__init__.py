"""The process that trains: apart from the daemon, so that a crash or a leak does not take it along.

`python -m fedward.client.worker` reads one JSON line per request and writes one per answer; it
keeps model and data between rounds. The daemon's end is `process`, which imports none of what
computes. Both ends speak `protocol`.
"""
