"""Estimates of runs before any weight is loaded: shapes, memory, time."""
