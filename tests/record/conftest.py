"""Reports to look at."""

from tests.sample_reports import any_report, sample

__all__ = ["any_report", "sample"]
