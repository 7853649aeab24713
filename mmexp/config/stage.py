"""Mistakes that the settings of a stage give away before any part is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmexp.config.names import nearest
from mmexp.config.spine import PARTS, StageConfig
from mmexp.errors import ConfigError, MmexpError

LEAVES = ("frozen", "lora", "full")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("warmup_ratio", 0.0, 1.0),
    ("lr", 0.0, float("inf")),
    ("epochs", 0.0, float("inf")),
    ("weight_decay", 0.0, float("inf")),
    ("micro_batch_size", 1, float("inf")),
    ("batch_size", 1, float("inf")),
    ("max_steps", 1, float("inf")),
)


def stage_errors(stage: StageConfig) -> list[MmexpError]:
    """Wrong parts in the policy or the learning rates, numbers out of range, batches that do not divide."""
    errors = _policy_errors(stage.policy)
    errors += [
        ConfigError(f"no part {name!r}", expected=", ".join(PARTS), where=f"stage.{setting}.{name}")
        for setting in ("lr_by_part", "layer_decay")
        for name in getattr(stage, setting)
        if name not in PARTS
    ]
    errors += [
        ConfigError(f"{factor}", expected="above 0 and at most 1", where=f"stage.layer_decay.{name}")
        for name, factor in stage.layer_decay.items()
        if not 0 < factor <= 1
    ]
    for name, low, high in _RANGES:
        value = getattr(stage, name)
        if value is not None and not low <= value <= high:
            expected = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
            errors.append(ConfigError(f"{value}", expected=expected, where=f"stage.{name}"))
    errors += [
        ConfigError(f"no part {name!r}", expected=", ".join(PARTS), where="stage.live_dropout")
        for name in stage.live_dropout
        if name not in PARTS
    ]
    micro = stage.micro_batch_size
    if micro >= 1 and stage.batch_size % micro:
        errors.append(
            ConfigError(
                f"{stage.batch_size}",
                expected=f"a multiple of stage.micro_batch_size={micro}",
                where="stage.batch_size",
                fix=f"stage.batch_size={-(-stage.batch_size // micro) * micro}",
            )
        )
    return errors


def storage_errors(policy: Mapping[str, Any], llm: Any, trainer: Any) -> list[MmexpError]:
    """What an LLM stored in few bits cannot do: train its own weights, compute in float16, or be shared out; and what
    one in 16 bit cannot: train some of its weights, which are float32, beside others without autocast."""
    storage, dtype = getattr(llm, "quantize", "none"), getattr(llm, "dtype", "float32")
    errors: list[MmexpError] = []
    tree = policy.get("llm")
    opened = _leaves(tree, "stage.policy.llm", "full") if isinstance(tree, Mapping) else []
    if opened and dtype != "float32" and getattr(trainer, "precision", "").startswith("32"):
        expected = (
            "autocast, or one precision: what trains is float32, and meets what comes out of the layers beside it"
        )
        fix = "llm.dtype=float32, or trainer.precision=bf16-mixed"
        errors.append(ConfigError(f"{dtype}, but {opened[0]} trains", expected=expected, where="llm.dtype", fix=fix))
    if storage == "none":
        return errors
    for where in _leaves(tree, "stage.policy.llm", "full"):
        found, fix = f"full, but llm.quantize={storage}", "stage.policy.llm=lora, or llm.quantize=none"
        expected = "lora or frozen: weights in few bits cannot train"
        errors.append(ConfigError(found, expected=expected, where=where, fix=fix))
    if getattr(llm, "dtype", "") == "float16":
        found, fix = f"float16 with llm.quantize={storage}", "llm.dtype=bfloat16"
        expected = "bfloat16 or float32, in which the small gradients of adapters do not vanish"
        errors.append(ConfigError(found, expected=expected, where="llm.dtype", fix=fix))
    if getattr(trainer, "shares_weights", False):
        found, fix = f"{trainer.strategy}, but llm.quantize={storage}", "trainer=ddp_bf16, or llm.quantize=none"
        expected = "a strategy with a whole model in each process: scales of few bits do not follow a share"
        errors.append(ConfigError(found, expected=expected, where="trainer.strategy", fix=fix))
    return errors


def evaluation_errors(evaluation: Mapping[str, Any] | None, trainer: Any) -> list[MmexpError]:
    """Evaluations during training without anything to ask; `evaluation` is None where nobody has looked at it."""
    every = getattr(trainer, "evaluate_every_n_steps", None)
    if every is None or evaluation is None or evaluation:
        return []
    where, fix = "trainer.evaluate_every_n_steps", "evaluation=<benchmark>, which --help lists, or null here"
    return [ConfigError(f"{every}, but no benchmark is chosen", expected="at least one", where=where, fix=fix)]


def cache_errors(stage: StageConfig, encoder: Any) -> list[MmexpError]:
    """What makes features that were kept wrong: an encoder that trains (or its trunk, where it has one), or whose
    dropout is active."""
    setting = "processor.feature_cache=read_write"
    tree, place = stage.policy.get("encoder"), "stage.policy.encoder"
    trunk = getattr(encoder, "trunk", None)
    if isinstance(tree, Mapping) and trunk in tree:
        tree, place = tree[trunk], f"{place}.{trunk}"
    trained = [(leaf, where) for leaf in ("full", "lora") for where in _leaves(tree, place, leaf)]
    errors: list[MmexpError] = [
        ConfigError(
            f"{leaf}, but {setting}",
            expected="a frozen encoder: features that were kept are wrong as soon as its weights move",
            where=where,
            fix=f"processor.feature_cache=none, or {where}=frozen",
        )
        for leaf, where in trained
    ]
    if "encoder" in stage.live_dropout:
        errors.append(
            ConfigError(
                f"encoder, but {setting}",
                expected="an encoder that makes the same features each time",
                where="stage.live_dropout",
                fix="processor.feature_cache=none, or stage.live_dropout without it",
            )
        )
    return errors


def _leaves(tree: Any, where: str, wanted: str) -> list[str]:
    """Where in a policy tree a leaf stands."""
    if isinstance(tree, Mapping):
        return [found for name, leaf in tree.items() for found in _leaves(leaf, f"{where}.{name}", wanted)]
    return [where] if tree == wanted else []


def _policy_errors(policy: Mapping[str, Any]) -> list[MmexpError]:
    errors: list[MmexpError] = []
    for name in policy:
        if name not in PARTS:
            close = nearest(name, PARTS)
            fix = f"stage.policy.{close}" if close else None
            where = f"stage.policy.{name}"
            errors.append(ConfigError("no such part of the model", expected=", ".join(PARTS), where=where, fix=fix))
    for name in PARTS:
        if name not in policy:
            where = f"stage.policy.{name}"
            errors.append(
                ConfigError("not named", expected="a policy for every part", where=where, fix=f"{where}=frozen")
            )
    return errors + _leaf_errors(policy, "stage.policy")


def _leaf_errors(tree: Mapping[str, Any], where: str) -> list[MmexpError]:
    errors: list[MmexpError] = []
    for name, leaf in tree.items():
        path = f"{where}.{name}"
        if isinstance(leaf, Mapping):
            errors += _leaf_errors(leaf, path)
        elif leaf not in LEAVES:
            close = nearest(str(leaf), LEAVES)
            fix = f"{path}={close}" if close else None
            errors.append(ConfigError(f"{leaf!r}", expected="frozen, lora or full", where=path, fix=fix))
    return errors
