"""Low-rank adapters through peft, and their files in peft's own format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmexp.errors import CheckpointError, ConfigError, MmexpError

if TYPE_CHECKING:
    from peft import LoraConfig


_TRANSFORMERS = ("model", "vit")
"""What parts call the transformer inside them: those around transformers' models, and LAVIS's encoders."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The numbers of `stage.lora`. Source: LLaVA-1.5 `finetune_lora.sh`: rank 128, alpha 256, dropout 0.05."""

    rank: int = 128
    alpha: float = 256
    dropout: float = 0.05
    targets: Sequence[str] | str = "all-linear"
    """`all-linear` (every linear layer but the output head), or names of modules."""


def adapted_child(module: nn.Module) -> str | None:
    """Name of the transformer inside a part, which adapters go on; None where a part has none."""
    return next((name for name in _TRANSFORMERS if hasattr(module, name)), None)


def has_adapter(module: nn.Module) -> bool:
    """Whether a part has adapters."""
    return any(".lora_" in name for name, _ in module.named_parameters())


def add_lora(module: nn.Module, settings: LoraSettings, where: str) -> list[MmexpError]:
    """Freezes the transformer inside a part and adds adapters to it in place; what else the part has stays as it is."""
    from peft import inject_adapter_in_model

    child = adapted_child(module)
    if child is None:
        return [
            ConfigError(
                "lora on a part that is no pretrained transformer",
                expected="frozen or full",
                where=where,
                fix=f"{where}=full",
            )
        ]
    inner: Any = getattr(module, child)
    inner.requires_grad_(False)
    targets = _linear_names(inner) if settings.targets == "all-linear" else list(settings.targets)
    try:
        inject_adapter_in_model(_peft_config({**asdict(settings), "targets": targets}), inner)
    except ValueError as error:
        return [ConfigError(str(error).splitlines()[0], where="stage.lora.targets")]
    inner.train()
    return []


def cast_adapter_inputs(module: nn.Module, on: bool) -> None:
    """Whether adapters make what comes in as precise as they are, in place.

    peft does, for products of unlike precision fail; under autocast they do not, and casts are all that is left of it.
    """
    for each in module.modules():
        if hasattr(each, "cast_input_dtype_enabled"):
            each.cast_input_dtype_enabled = on  # type: ignore[assignment]  # a switch, not a tensor


def adapter_state(module: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors, keyed as peft saves them."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(_inner(module))
    return {f"base_model.model.{key}": tensor.detach().cpu().contiguous() for key, tensor in state.items()}


def save_adapter(module: Any, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which peft alone can load."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    _inner(module).peft_config["default"].save_pretrained(str(folder))
    save_file(adapter_state(module), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merge_adapter(module: Any, folder: Path) -> None:
    """Loads an adapter folder into the part and folds it into the part's own weights."""
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(_inner(module), str(folder)).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(str(error).splitlines()[0], where=str(folder)) from error
    setattr(module, str(adapted_child(module)), merged)


def _inner(module: nn.Module) -> Any:
    """The transformer inside a part."""
    return getattr(module, str(adapted_child(module)))


def _peft_config(settings: dict[str, Any]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=settings["targets"],
        bias="none",
    )


def _linear_names(model: Any) -> list[str]:
    """Last names of all linear layers except the output head, as LLaVA's `find_all_linear_names` gives them."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return sorted(names)
