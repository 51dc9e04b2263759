"""The report of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from experiments.report.page import require_report_extra, write_report

__all__ = ["require_report_extra", "write_report"]
