"""What a criterion looks at, and the hooks and reads that get it."""
