"""Storage: opaque records go in, are durable after a sync, and come back in LSN order."""
