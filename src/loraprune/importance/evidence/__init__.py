"""Evidence for the criteria, and the hooks that collect it."""
