"""Distribution of a sparsity ratio over dimensions and over time: schedule, uniform, balanced, global."""
