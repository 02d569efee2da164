"""One layer under its wrappers: LoRA, quantized layers, stacked experts."""
