"""Runs of several processes: the main process, shared work, sums, and sharded weights."""
