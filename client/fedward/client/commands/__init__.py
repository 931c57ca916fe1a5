"""The commands of `fedward client`, one module for each family; `client.cli` assembles them."""
