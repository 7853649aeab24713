"""What texts about the same media have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmexp.contracts import MediaRun


def common_length(prompts: Sequence[Sequence[int]], runs: Sequence[Sequence[MediaRun]]) -> int:
    """How many tokens texts about the same media, or about none, have in common; 0 when a medium stands behind that.

    Args:
        prompts: Token ids of each text.
        runs: Where the media of each text stand.
    """
    shortest = min(map(len, prompts)) - 1  # each text keeps a token of its own, whose answer it gets
    columns = zip(*(prompt[:shortest] for prompt in prompts), strict=True)
    length = next((at for at, column in enumerate(columns) if len(set(column)) > 1), shortest)
    ends = [run.start + run.length for each in runs for run in each]
    alike = all(list(each) == list(runs[0]) for each in runs)
    return length if alike and max(ends, default=0) <= length else 0
