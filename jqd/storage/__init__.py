"""Opaque records on disk: files, fsync, recovery."""
