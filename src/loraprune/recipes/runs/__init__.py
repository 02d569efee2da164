"""Several runs side by side: their records, results and measurements, and what of them compares."""
