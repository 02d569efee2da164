"""Importance of groups: one file per criterion, plus the moving average and the stability of scores."""
