"""Old names that still work, with a warning."""
