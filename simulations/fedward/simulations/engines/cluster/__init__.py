"""The `ray` engine: sites in worker processes of Ray, on this machine or on a cluster."""
