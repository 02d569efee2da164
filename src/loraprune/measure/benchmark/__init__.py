"""Speed and memory of models, measured alternately: ``loraprune bench``."""
