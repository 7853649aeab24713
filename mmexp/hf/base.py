"""What every export shares: names of tensors as pure functions, growing tables, and files written whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from mmexp.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

State = dict[str, "Tensor"]
"""Tensors by name, as a checkpoint holds them."""
Rename = Callable[[str], "str | None"]
"""The name of a tensor on the other side; None when it has none there."""


def rename(state: Mapping[str, Tensor], rule: Rename, where: str) -> State:
    """The tensors under their names on the other side.

    Raises:
        CheckpointError: a tensor has no name there, or two have the same one.
    """
    renamed: State = {}
    lost: list[str] = []
    for name, tensor in state.items():
        other = rule(name)
        if other is None:
            lost.append(name)
        elif other in renamed:
            raise CheckpointError(f"two tensors become {other}", where=where)
        else:
            renamed[other] = tensor
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors have no place there: {', '.join(lost[:4])}",
            expected="tensors of the layers that both sides have",
            where=where,
        )
    return renamed


def require_equal_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Raises CheckpointError unless the two sets of names are equal; the message lists what differs."""
    has, wants = set(found), set(expected)
    missing, surplus = sorted(wants - has), sorted(has - wants)
    if missing or surplus:
        lines = [f"{len(missing)} missing: {', '.join(missing[:4])}"] if missing else []
        lines += [f"{len(surplus)} surplus: {', '.join(surplus[:4])}"] if surplus else []
        raise CheckpointError("; ".join(lines), expected="exactly the tensors of the other side", where=where)


def grow(table: Tensor, num_rows: int) -> Tensor:
    """A table of embeddings (or of an output head) with at least `num_rows` rows.

    New rows are the mean of the old ones. So the logit of a new token is the mean of all others, and the largest logit
    is never its own: a greedy answer cannot change.
    """
    missing = num_rows - table.shape[0]
    if missing <= 0:
        return table
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(missing, -1)])


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest dtype that holds every one of them without loss."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    result = dtypes.pop()
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result


def save_state(state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype, max_shard_size: str = "5GB") -> None:
    """Writes safetensors files, numbered and with an index when there are several."""
    from huggingface_hub import save_torch_state_dict

    plain = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    save_torch_state_dict(plain, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # written through a private temporary file


def plain_config(config: Any) -> dict[str, Any]:
    """A transformers config as its file has it, without what belongs to this process."""
    values = config.to_dict()
    for key in ("transformers_version", "_name_or_path", "_attn_implementation"):
        values.pop(key, None)
    return values
