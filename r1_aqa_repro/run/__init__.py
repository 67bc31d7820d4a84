"""A run: its configuration, checks, folder, checkpoints and loop."""
