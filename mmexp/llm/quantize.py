"""Linear layers stored in 8 or 4 bit: how a large frozen LLM fits, and what adapters are laid on."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mmexp.errors import ConfigError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

Storage = Literal["none", "int8", "nf4"]
"""How the linear layers of an LLM are stored: as they are, LLM.int8(), or the 4-bit floats of QLoRA."""
_LIBRARY = "bitsandbytes"


def require_library(storage: Storage) -> None:
    """Raises ConfigError unless what stores weights like this is installed."""
    if storage != "none" and importlib.util.find_spec(_LIBRARY) is None:
        raise ConfigError(f"{_LIBRARY} is not installed", expected="the extra `quantize` of this package",
                          where=f"llm.quantize={storage}",
                          fix='pip install "mmexp[quantize]", or llm.quantize=none')  # fmt: skip


def quantize_llm(llm: Any, storage: Storage, device: torch.device, keep: Iterable[str] = ()) -> None:
    """Stores the linear layers of a built LLM in few bits, in place: all but its output head, as transformers does.

    It has to happen on the device that the LLM will run on, since what belongs to a quantised weight does not follow
    when a whole model is moved; and after every start was loaded, since weights cannot be put into it any more.

    Args:
        llm: A part with a transformers model as `model`.
        storage: int8 or nf4; `none` changes nothing.
        device: Where it will run.
        keep: Names of tensors that differ from the base weights. They are kept as they are, on the CPU, in
            `llm.originals`, because a run hands on full precision.

    Raises:
        ConfigError: the library is not installed.

    Source: Dettmers et al. 2022, LLM.int8(), section 3 (outliers above 6.0 stay in 16 bit); Dettmers et al. 2023,
    QLoRA, section 3 (NF4).
    """
    if storage == "none":
        return
    require_library(storage)
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    model, wanted = llm.model, set(keep)
    state = llm.state_dict() if wanted else {}
    llm.originals = {name: state[name].detach().to("cpu") for name in sorted(wanted)}
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # says in every call what it casts
    plain = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    config = _settings(storage, next(model.parameters()).dtype)
    spared = [*get_keys_to_not_convert(model), *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    replace_with_bnb_linear(model, spared, config)
    for name, layer in list(model.named_modules()):
        if name in plain and layer is not plain[name]:
            _fill(layer, plain.pop(name), device)
    setattr(model, "is_loaded_in_8bit" if storage == "int8" else "is_loaded_in_4bit", True)  # what peft asks for
    model.config.quantization_config = config


def num_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for; two 4-bit ones share a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def _settings(storage: Storage, dtype: torch.dtype) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    if storage == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _fill(layer: Any, plain: nn.Linear, device: torch.device) -> None:
    """Quantises the weight of `plain` into the empty `layer`."""
    kind, settings = type(layer.weight), {k: v for k, v in vars(layer.weight).items() if k not in ("CB", "SCB")}
    layer.weight = kind(plain.weight.detach(), requires_grad=False, **settings).to(device)
    layer.bias = plain.bias
    layer.train(plain.training)
    if kind.__name__ == "Int8Params":
        from mmexp.llm.int8 import FrozenLinear8bitLt

        layer.__class__ = FrozenLinear8bitLt  # peft lays its adapter on it as on the library's own
