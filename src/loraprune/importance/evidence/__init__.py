"""What criteria look at, and the hooks that collect it."""
