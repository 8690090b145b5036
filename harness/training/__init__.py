"""Training of small checkpoints with the objectives that the harness compares."""
