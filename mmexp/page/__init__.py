"""What pages about runs are made of: run directories as plain values, charts, pictures, style. Reads plain files."""

from mmexp.page.curves import Points, line_chart
from mmexp.page.document import document
from mmexp.page.picture import data_uri, load_thumbnail
from mmexp.page.read import (
    BASELINES,
    Results,
    Run,
    Series,
    find_image,
    is_validation_curve,
    load_run,
    primary_metric,
    results_of,
    series_of,
)
from mmexp.page.spent import spent, spent_before, time_of_steps, total_of

__all__ = [
    "BASELINES",
    "Points",
    "Results",
    "Run",
    "Series",
    "data_uri",
    "document",
    "find_image",
    "is_validation_curve",
    "line_chart",
    "load_run",
    "load_thumbnail",
    "primary_metric",
    "results_of",
    "series_of",
    "spent",
    "spent_before",
    "time_of_steps",
    "total_of",
]
