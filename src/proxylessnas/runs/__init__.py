"""The run directory: records, checkpoints, locks, resume, summary."""
