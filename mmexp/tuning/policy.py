"""Which weights move: a tree shaped like the model, with the leaves `frozen`, `lora` and `full`."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mmexp.errors import ConfigError, MmexpError
from mmexp.llm import new_rows, num_weights
from mmexp.tuning.lora import LoraSettings, adapted_child, add_lora
from mmexp.tuning.storage import widen_trained

if TYPE_CHECKING:
    from mmexp.model import MultimodalModel

log = logging.getLogger(__name__)

LEAVES = ("frozen", "lora", "full")
PolicyTree = str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainedPart:
    """One row of the table of what trains."""

    name: str
    policy: str
    """frozen, lora, full, or `mixed` when the tree goes deeper; and what is special about it."""
    num_parameters: int
    num_trained: int
    lr: float
    """Peak learning rate; 0 when nothing of the part trains."""


def apply_policy(
    model: MultimodalModel,
    policy: Mapping[str, PolicyTree],
    lora: LoraSettings,
    live_dropout: Sequence[str] = (),
    new_tokens: str = "full",
) -> dict[str, nn.Module]:
    """Freezes, opens and adapts the parts of `model` in place; returns the parts by name.

    A string covers its subtree; a mapping must name every child, and every tensor beside the children. Frozen modules
    are put in eval mode once, and Lightning keeps that mode. What trains becomes float32.

    Args:
        policy: What trains.
        lora: The numbers of adapters.
        live_dropout: Parts that stay in train mode although they are frozen.
        new_tokens: `full` opens the rows of the template's new tokens also where the policy freezes their LLM.

    Raises:
        ConfigError: every name that is missing or unknown, all at once.
    """
    parts = model.parts()
    errors: list[MmexpError] = list(_name_errors(policy, list(parts), "stage.policy"))
    errors += [
        ConfigError(f"no part {name!r}", expected=", ".join(parts), where="stage.live_dropout")
        for name in live_dropout
        if name not in parts
    ]
    for name, module in parts.items():
        if name in policy:
            errors += _apply(module, policy[name], f"stage.policy.{name}", lora, is_part=True)
    if errors:
        raise ConfigError.collect(errors)
    for name in live_dropout:
        parts[name].train()
    for rows in new_rows(model) if new_tokens == "full" else ():
        rows.requires_grad_(True)
    for name, module in parts.items():
        if widened := widen_trained(module):
            log.info("%s: %s weights that train are float32, whatever its dtype", name, f"{widened:,}")
    return parts


def _apply(
    module: nn.Module | nn.Parameter, tree: PolicyTree, where: str, lora: LoraSettings, is_part: bool = False
) -> list[MmexpError]:
    if isinstance(module, nn.Parameter):
        return _apply_to_tensor(module, tree, where)
    if isinstance(tree, str):
        if tree not in LEAVES:
            close = difflib.get_close_matches(tree, LEAVES, n=1)
            fix = f"{where}={close[0]}" if close else None
            return [ConfigError(f"{tree!r}", expected="frozen, lora or full", where=where, fix=fix)]
        if tree == "lora":
            module.requires_grad_(False).eval()
            return add_lora(module, lora, where)
        module.requires_grad_(tree == "full").train(tree == "full")
        return []
    children = {**dict(module.named_children()), **dict(module.named_parameters(recurse=False))}
    errors = list(_name_errors(tree, list(children), where))
    for name, child in children.items():
        if tree.get(name) == "lora" and isinstance(child, nn.Module):
            is_whole = is_part and adapted_child(module) == name
            errors += add_lora(module, lora, where) if is_whole else [_lora_on_a_piece(f"{where}.{name}")]
        elif name in tree:
            errors += _apply(child, tree[name], f"{where}.{name}", lora)
    return errors


def _lora_on_a_piece(where: str) -> ConfigError:
    expected = "adapters on a whole one; stage.lora.targets says on which of its layers"
    fix = f"{where.rsplit('.', 1)[0]}=lora"
    return ConfigError("lora on a piece of a transformer", expected=expected, where=where, fix=fix)


def _apply_to_tensor(parameter: nn.Parameter, tree: PolicyTree, where: str) -> list[MmexpError]:
    """A parameter of a module that has children beside it."""
    if tree not in ("frozen", "full"):
        return [ConfigError(f"{tree!r} for a single tensor", expected="frozen or full", where=where)]
    parameter.requires_grad_(tree == "full")
    return []


def _name_errors(tree: PolicyTree, names: list[str], where: str) -> Iterator[MmexpError]:
    if not isinstance(tree, Mapping):
        return
    for name in tree:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            yield ConfigError(
                f"no part {name!r}",
                expected=", ".join(names),
                where=where,
                fix=f"{where}.{close[0]}" if close else None,
            )
    for name in names:
        if name not in tree:
            yield ConfigError(
                f"{name} is not named", expected="every part has a policy", where=where, fix=f"{where}.{name}=frozen"
            )


def describe(
    parts: Mapping[str, nn.Module], policy: Mapping[str, PolicyTree], lr: float, lr_by_part: Mapping[str, float]
) -> list[TrainedPart]:
    """What trains, part by part, after `apply_policy`."""
    rows = []
    for name, module in parts.items():
        tree = policy.get(name, "full")
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        rows.append(
            TrainedPart(
                name=name,
                policy=_policy_in_words(module, tree),
                num_parameters=sum(map(num_weights, module.parameters())),
                num_trained=trained,
                lr=lr_by_part.get(name, lr) if trained else 0.0,
            )
        )
    return rows


def _policy_in_words(module: nn.Module, tree: PolicyTree) -> str:
    words = [tree if isinstance(tree, str) else "mixed"]
    rows = new_rows(module)
    if rows and tree != "full":
        words.append(f"{len(rows[0])} new tokens {'full' if rows[0].requires_grad else 'frozen'}")
    if module.training and words[0] == "frozen":
        words.append("dropout active")
    return ", ".join(words)
