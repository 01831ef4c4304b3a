"""Tools for a data directory: they read one, say what is wrong with it, and make one start again."""
