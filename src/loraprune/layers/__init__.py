"""Single layers under their wrappers: LoRA, quantized layers, stacked experts."""
