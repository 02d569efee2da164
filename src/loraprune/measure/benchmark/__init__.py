"""Speed and memory of models that take turns: ``loraprune bench``."""
