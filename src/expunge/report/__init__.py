"""The page that a person reads: one HTML file with the request, the verdict and the evidence."""

from expunge.report.page import REPORT_FILE, render, write_report

__all__ = ["REPORT_FILE", "render", "write_report"]
