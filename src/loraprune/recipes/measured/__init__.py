"""Models that are measured: checkpoints and adapters in, whatever wrote them."""
