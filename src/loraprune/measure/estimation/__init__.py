"""Estimates of the shapes, memory and time of a run before anything is loaded: ``loraprune plan``."""
