"""Any set of runs side by side: figures over seeds, paired tests, costs, curves, samples. Reads plain files."""

from mmexp.compare.comparison import Comparison, compare
from mmexp.compare.outputs import csv_text, latex, markdown, terminal_tables
from mmexp.compare.page import page_html
from mmexp.compare.sources import Found, load_folders
from mmexp.compare.tracked import load_tracked

__all__ = [
    "Comparison",
    "Found",
    "compare",
    "csv_text",
    "latex",
    "load_folders",
    "load_tracked",
    "markdown",
    "page_html",
    "terminal_tables",
]
