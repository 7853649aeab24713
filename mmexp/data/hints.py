"""What is known of rows before they are tokenised: how many words they have."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mmexp.contracts import Dataset, Hinted
from mmexp.data.readers.rows import length_hint

if TYPE_CHECKING:
    from numpy import ndarray

log = logging.getLogger(__name__)

MEDIA_WORDS = 128
"""What a row with media counts besides its words when rows are ordered by length.

Source: haotian-liu/LLaVA @ c121f04 llava/train/train.py, `lengths`.
"""


def word_hints(dataset: Dataset) -> ndarray:
    """int32[rows], see `mmexp.contracts.Hinted`; a dataset that has none is read once."""
    import numpy as np

    if isinstance(dataset, Hinted):
        return np.asarray(dataset.hints(), dtype=np.int32)
    log.info("counting the words of %d rows, which this dataset does not know itself", len(dataset))
    hints = (length_hint(dataset[index].turns) for index in range(len(dataset)))
    return np.fromiter(hints, dtype=np.int32, count=len(dataset))
