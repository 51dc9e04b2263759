"""Reports: HTML files that need nothing else."""

from __future__ import annotations

from experiments.report.markdown import write_markdown
from experiments.report.page import write_report
from experiments.report.template import require_report_extra

__all__ = ["require_report_extra", "write_markdown", "write_report"]
