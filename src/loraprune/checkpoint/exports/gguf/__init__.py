"""GGUF files, which llama.cpp and the programs built on it load: `file.py` writes them, the others prepare."""
