"""Perplexity, tasks and completions of several models: ``loraprune eval``."""
