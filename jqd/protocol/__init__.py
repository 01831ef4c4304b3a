"""Frames in bytes, and the state of one connection, without I/O."""
