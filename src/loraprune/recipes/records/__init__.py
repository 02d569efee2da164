"""What is kept of a run, and what can be told from it later."""
