"""Several processes that share one run: who writes, what all agree on, and sums over all of them."""
