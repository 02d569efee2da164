"""Several runs side by side: ``loraprune compare``."""
