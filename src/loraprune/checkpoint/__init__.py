"""Loading and saving of checkpoints: adapters, the class for ragged widths, exports to other runtimes."""
