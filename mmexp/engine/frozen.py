"""The check that nothing frozen is random: such a part cannot learn, and the rest trains on noise unnoticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmexp.errors import ConfigError, MmexpError

if TYPE_CHECKING:
    from torch import nn

    from mmexp.engine.chain import Changed
    from mmexp.model import Plan


def require_loaded(plan: Plan, parts: Mapping[str, nn.Module], changed: Changed, policy: Mapping[str, Any]) -> None:
    """Connectors have no weights but those that a start brings; encoders and LLMs have none where `from_scratch`.

    Args:
        plan: Of the model.
        parts: After the policy was applied.
        changed: What starts have loaded.
        policy: Tells how deep a part was looked at, for the message.

    Raises:
        ConfigError: one for each frozen part, or child that the policy names, with tensors that nothing has loaded.
    """
    errors: list[MmexpError] = []
    for name in _unloaded(plan):
        given = changed.get(name, set())
        random = [key for key, parameter in parts[name].named_parameters()
                  if not parameter.requires_grad and key.replace(".base_layer.", ".") not in given]  # fmt: skip
        children = list(policy[name]) if isinstance(policy.get(name), Mapping) else [""]
        for child in children:
            mine = [key for key in random if not child or key == child or key.startswith(f"{child}.")]
            if mine:
                errors.append(_error(".".join(filter(None, (name, child))), mine))
    if errors:
        raise ConfigError.collect(errors)


def _unloaded(plan: Plan) -> Iterator[str]:
    """Names of the parts whose weights are random when they are built."""
    for modality, branch in plan.inputs.items():
        prefix = "" if modality == "image" else f"{modality}."
        yield f"{prefix}connector"
        if getattr(branch.encoder, "from_scratch", False):
            yield f"{prefix}encoder"
    if getattr(plan.llm, "from_scratch", False):
        yield "llm"


def _error(part: str, names: list[str]) -> ConfigError:
    return ConfigError(
        f"frozen, and {len(names)} of its tensors are random, since nothing has loaded them: {', '.join(names[:3])}",
        expected="weights of a former stage, or of a checkpoint",
        where=f"stage.policy.{part}",
        fix=f"stage.init_from=<a run or checkpoint that has them>, stage.policy.{part}=full, or, where random weights"
        " are meant, stage.allow_random_frozen=true",
    )
