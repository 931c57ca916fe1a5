"""The commands of `fedward server`, one module for each family; `server.cli` assembles them."""
