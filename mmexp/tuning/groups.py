"""From trained parameters to optimizer groups: who decays, and how fast each part and each of its blocks learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mmexp.errors import ConfigError, MmexpError


def parameter_groups(
    parts: Mapping[str, nn.Module],
    lr: float,
    lr_by_part: Mapping[str, float],
    weight_decay: float,
    layer_decay: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Optimizer groups over trained parameters only: per part, matrices with weight decay and the rest without.

    With a decay d of a part with L blocks, block i (from 0) learns with lr * d^(L - i), what comes before the blocks
    with lr * d^(L + 1), and what comes after them with lr.

    Source: LLaVA `llava_trainer.py` (norms and biases do not decay); BEiT, appendix (layer-wise learning rates).

    Args:
        parts: By name.
        lr: Peak learning rate.
        lr_by_part: Peak learning rates of single parts.
        weight_decay: Of matrices.
        layer_decay: Per part the factor from a block to the one before it, above 0 and at most 1.

    Raises:
        ConfigError: nothing trains, `lr_by_part` or `layer_decay` names a part that does not train, or one without
            blocks.
    """
    layer_decay = layer_decay or {}
    groups = []
    for name, module in parts.items():
        peak, decay = lr_by_part.get(name, lr), layer_decay.get(name, 1.0)
        for label, parameters, power in _layers(name, module) if decay != 1.0 else [(name, module.parameters(), 0)]:
            trained = [p for p in parameters if p.requires_grad]
            groups += _by_weight_decay(label, trained, peak * decay**power, weight_decay)
    if not groups:
        raise ConfigError("every part is frozen", expected="something that trains", where="stage.policy")
    training = {group["name"].split("/")[0] for group in groups}
    errors: list[MmexpError] = [
        ConfigError(
            f"{name} does not train",
            expected=f"one of {', '.join(sorted(training))}",
            where=f"stage.{setting}",
            fix=f"stage.policy.{name}=full, or ~stage.{setting}.{name}",
        )
        for setting, names in (("lr_by_part", lr_by_part), ("layer_decay", layer_decay))
        for name in names
        if name not in training
    ]
    if errors:
        raise ConfigError.collect(errors)
    return groups


def _by_weight_decay(name: str, trained: list[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of parameters with one learning rate; none for no parameters."""
    matrices, rest = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = ((name, matrices, weight_decay), (f"{name}/no_decay", rest, 0.0))
    return [
        {"name": label, "params": chosen, "lr": lr, "weight_decay": decay} for label, chosen, decay in groups if chosen
    ]


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, list[nn.Parameter], int]]:
    """Label, parameters and power of the decay of everything in a part, by its place before, in or behind the blocks.

    Before the blocks is what the part registers before them, as all vision transformers here do.
    """
    blocks = _blocks(name, module)
    depth = len(blocks)
    in_blocks = {id(parameter) for parameter in blocks.parameters()}
    before: list[nn.Parameter] = []
    after: list[nn.Parameter] = []
    place = before
    for parameter in module.parameters():
        if id(parameter) in in_blocks:
            place = after
        else:
            place.append(parameter)
    yield f"{name}/embedding", before, depth + 1
    for index, block in enumerate(blocks):
        yield f"{name}/block{index}", list(block.parameters()), depth - index
    yield name, after, 0


def _blocks(name: str, module: nn.Module) -> nn.ModuleList | nn.Sequential:
    """The longest list of equal blocks of a part."""
    lists = [
        each
        for each in module.modules()
        if isinstance(each, nn.ModuleList | nn.Sequential) and len({type(block) for block in each}) == 1
    ]
    if not lists:
        raise ConfigError(
            f"{type(module).__name__} has no list of blocks",
            expected="a transformer, whose blocks learn at different rates",
            where=f"stage.layer_decay.{name}",
            fix=f"~stage.layer_decay.{name}",
        )
    return max(lists, key=len)
