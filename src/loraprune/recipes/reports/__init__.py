"""What a run tells: its report and its model card."""
