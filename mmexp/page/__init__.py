"""What pages about runs are made of: run directories as plain values, charts, pictures, style. Reads plain files."""

from pathlib import Path

from mmexp.page.curves import Points, line_chart
from mmexp.page.embed import embedded, script_hash
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

STYLE = Path(__file__).with_name("style.css")
"""Style sheet of every page: colours for light and dark, cards, charts."""

__all__ = [
    "BASELINES",
    "STYLE",
    "Points",
    "Results",
    "Run",
    "Series",
    "data_uri",
    "embedded",
    "find_image",
    "is_validation_curve",
    "line_chart",
    "load_run",
    "load_thumbnail",
    "primary_metric",
    "results_of",
    "script_hash",
    "series_of",
]
