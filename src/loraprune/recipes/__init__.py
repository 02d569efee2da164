"""Whole runs, readable from top to bottom."""
