"""Pruning while a Trainer trains: the callback, its configuration and its saved state."""
