"""The repeated blocks of a part: what is sharded, recomputed or compiled one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """The children of every list of modules of one class in `part`; lists inside a block are not looked at.

    The last one may be of a subclass (`mmexp.llm.last_layer`).
    """
    found: list[nn.Module] = []
    for child in part.children():
        is_list = isinstance(child, nn.ModuleList) and all(isinstance(block, type(child[0])) for block in child)
        found += list(child) if is_list else blocks_of(child)  # type: ignore[arg-type]  # a ModuleList
    return found


def set_up_blocks(parts: Mapping[str, nn.Module], recompute: Sequence[str], compiled: Sequence[str]) -> None:
    """Makes the blocks of some parts forget what lies inside them until backward, and compiles those of others.

    Both are done in place: names of tensors, and with them checkpoints, stay what they are.

    Args:
        parts: Name to part.
        recompute: Parts with gradient checkpointing.
        compiled: Parts whose blocks are compiled; a part without blocks is compiled whole.

    Raises:
        ConfigError: there is no such part.
    """
    for names, setting in ((recompute, "trainer.gradient_checkpointing"), (compiled, "trainer.compile")):
        for name in names:
            if name not in parts:
                raise ConfigError(f"no part {name!r}", expected=", ".join(parts), where=setting)
    for name in recompute:
        for block in blocks_of(parts[name]) or [parts[name]]:
            block.forward = _recomputed(block.forward)
    for name in compiled:
        for block in blocks_of(parts[name]) or [parts[name]]:
            block.compile()


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed
