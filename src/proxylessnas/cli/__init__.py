"""The command line: one file a verb; parse, call, exit code."""
