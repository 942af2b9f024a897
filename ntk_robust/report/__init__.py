"""Reports: records as JSON, tables, figures, and one self-contained HTML page."""

from ntk_robust.report._figure import figure_svg
from ntk_robust.report._write import overall_verdict, prepare_report_folder, write_report

__all__ = ["figure_svg", "overall_verdict", "prepare_report_folder", "write_report"]
