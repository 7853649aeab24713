"""Which of torch's attention kernels run where shapes change from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def for_any_shape(query: Tensor) -> Iterator[None]:
    """Inside, torch's `scaled_dot_product_attention` of GPU tensors does without cuDNN.

    cuDNN, torch's first choice on Hopper and later, plans each new shape before it runs: 0.03 to 0.5 s each on an H200,
    forward and backward, for attention of 0.03 ms. Where lengths differ from batch to batch, that is more than half of
    a step. The other kernels take every shape as it comes. A compiled block is left alone: there, compiling decides.
    """
    if not query.is_cuda or torch.compiler.is_compiling():
        yield
        return
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)
