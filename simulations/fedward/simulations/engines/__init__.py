"""Engines: what executes the sites of a simulation."""
