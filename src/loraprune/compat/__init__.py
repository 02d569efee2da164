"""Old names, which still work with a warning."""
