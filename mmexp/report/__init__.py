"""What a person sees of a run: its HTML page, its contact sheet, and tables for the terminal. Reads plain files."""

from mmexp.report.data_page import Example, Kind, write_data_page
from mmexp.report.entries import Entry, Piece, PreviewEntry
from mmexp.report.page import write_report
from mmexp.report.sheet import contact_sheet, preview_sheet
from mmexp.report.tables import plan_table, results_table, token_view

__all__ = [
    "Entry",
    "Example",
    "Kind",
    "Piece",
    "PreviewEntry",
    "contact_sheet",
    "plan_table",
    "preview_sheet",
    "results_table",
    "token_view",
    "write_data_page",
    "write_report",
]
