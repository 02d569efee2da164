"""How a sparsity ratio is spread over dimensions and over time: schedule, uniform, balanced, global."""
