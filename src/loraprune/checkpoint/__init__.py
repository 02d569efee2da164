"""Checkpoints in and out: loading, saving, adapters, the class for ragged widths, exports to other runtimes."""
