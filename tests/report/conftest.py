"""Reports to look at."""

from tests.sample_reports import any_page, any_report, sample, sample_page

__all__ = ["any_page", "any_report", "sample", "sample_page"]
