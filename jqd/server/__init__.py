"""The daemon: sockets, clocks, signals, threads."""
