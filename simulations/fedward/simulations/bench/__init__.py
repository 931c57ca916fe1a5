"""`fedward bench`: how fast simulations are on this machine, beside a loop written by hand."""
