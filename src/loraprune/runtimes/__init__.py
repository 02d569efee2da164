"""Finished checkpoints for other runtimes: llama.cpp (GGUF), onnxruntime (ONNX), and the formats of 2:4 weights."""
