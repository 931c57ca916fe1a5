"""`fedward rehearse`: the real server and the real daemons of a study, on one machine."""
