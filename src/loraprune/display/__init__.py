"""Console output before and during a run."""
