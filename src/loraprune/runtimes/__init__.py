"""Finished checkpoints for other runtimes: GGUF files for llama.cpp, ONNX files for onnxruntime."""
