"""Comparison of several runs: ``loraprune compare``."""
