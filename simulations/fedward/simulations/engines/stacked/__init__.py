"""The `stacked` engine: many sites as one batched tensor program."""
