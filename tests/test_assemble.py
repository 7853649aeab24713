"""When a run directory may be continued by the command that made it."""

from __future__ import annotations

import pytest

from mmexp.assemble import _require_same
from mmexp.engine import RunDir
from mmexp.errors import CheckpointError


def test_a_run_of_an_earlier_version_lacks_settings_and_means_their_defaults(tmp_path):
    saved = {"processor": {"row": "flat", "num_workers": 0}, "seed": 0}
    run = RunDir(tmp_path)
    _require_same(
        saved, {"processor": {"row": "flat", "order": "shuffled", "num_workers": 4}, "seed": 0}, run, inexact=False
    )
    for other in ({"row": "flat", "order": "length"}, {"row": "packed"}):
        with pytest.raises(CheckpointError, match="other settings of processor"):
            _require_same(saved, {"processor": other, "seed": 0}, run, inexact=False)
