"""Importance of groups: one file a criterion, and the moving average and stability of scores."""
