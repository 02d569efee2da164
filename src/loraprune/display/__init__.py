"""What a user sees before and during a run."""
