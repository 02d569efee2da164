"""The verbs that measure, each with its engine: evaluation, benchmark, estimation."""
