"""`fedward simulate --sweep`: a study with several settings, over several seeds, and which is best.

`arguments` reads the command line, `grid` makes the cells (one for each combination of settings),
`folder` keeps what is done, `runs` runs it in processes, `statistics` says what can be told apart,
`comparison` gathers it, `sweep` does one after the other. What people look at is made in `page`,
`charts`, `table` and `words`.
"""
