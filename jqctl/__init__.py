"""The command line of jqd."""
