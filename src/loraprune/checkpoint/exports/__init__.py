"""Exports of saved checkpoints to the formats of other runtimes."""
