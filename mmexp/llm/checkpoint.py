"""What every LLM from a checkpoint has in common: where its files are, its tokenizer, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmexp import hub
from mmexp.contracts import LlmSpec
from mmexp.errors import CheckpointError, ConfigError
from mmexp.llm.quantize import Storage

if TYPE_CHECKING:
    from transformers import PretrainedConfig


_HOLDERS = ("blip-2", "instructblip")
"""Models that hold an LLM of transformers whole, under the names `language_model.*`."""
_AROUND = ("vision_model.", "query_tokens", "qformer.", "language_projection.")
"""What else they hold."""
_BUFFER = re.compile(r"(^|\.)(inv_freq|position_ids)$")
"""What old files hold besides weights; it is computed."""


@dataclass(frozen=True, kw_only=True)
class LlmCheckpoint:
    """An LLM by hub id or local folder."""

    path: str
    """Hub id or folder of a transformers checkpoint; of a BLIP-2 or InstructBLIP model, the LLM inside it."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer, when it is not beside the weights. With it `mmexp.preview` needs no LLM."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How frozen weights are stored; what trains, adapters too, is float32."""
    quantize: Storage = "none"
    """`int8` or `nf4` stores the linear layers in 8 or 4 bit while a stage trains; they are then frozen, or have
    adapters (`stage.policy.llm`). What is handed on, asked and exported has the precision of `dtype`."""
    from_scratch: bool = False
    """Takes the architecture of `path` (its config.json) with random weights."""

    def load_tokenizer(self) -> Any:
        """The transformers tokenizer."""
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        return _read_tokenizer(hub.resolve(self.path, "llm"), self.path, self.revision, "llm")

    def read_config(self) -> PretrainedConfig:
        """The config.json as transformers has it.

        Raises:
            ConfigError: there is none, or it names no architecture of transformers.
        """
        from transformers import CONFIG_MAPPING, AutoConfig

        raw = hub.read_config(self.path, self.revision, "llm")
        raw = raw["text_config"] if raw.get("model_type") in _HOLDERS else raw
        if "model_type" not in raw:
            raise ConfigError(f"{self.path}: config.json has no model_type", where="llm.path")
        if raw["model_type"] not in CONFIG_MAPPING:
            raise ConfigError(
                f"{self.path}: model_type {raw['model_type']!r}",
                expected="an architecture of transformers; code that comes with a checkpoint is never run",
                where="llm.path",
                fix="llm._target_=mmexp.llm.QwenConfig for Qwen-7B, or another LLM",
            )
        return AutoConfig.for_model(**raw)

    def load(self, kind: Any, width: int, **settings: Any) -> Any:
        """The model with its weights.

        Args:
            kind: The class of transformers that loads it (`AutoModelForCausalLM`, ...).
            width: D as planned.
            settings: Further arguments of `from_pretrained`.

        Raises:
            CheckpointError: the files cannot be read, or belong to another model than the plan's.
        """
        import torch

        inside = hub.read_config(self.path, self.revision, "llm").get("model_type") in _HOLDERS
        if inside:
            settings = {"config": self.read_config(), "key_mapping": {r"^language_model\.": ""}} | settings
        try:
            with _quiet() if inside else nullcontext():
                model, info = kind.from_pretrained(
                    hub.resolve(self.path, "llm"),
                    revision=self.revision,
                    dtype=getattr(torch, self.dtype),
                    trust_remote_code=False,
                    output_loading_info=True,
                    **settings,
                )
        except (OSError, ValueError) as error:
            raise hub.unavailable(self.path, error, "llm", CheckpointError) from error
        around = _AROUND if inside else ()
        beyond = {name for name in info["unexpected_keys"] if not name.startswith(around) and not _BUFFER.search(name)}
        _require_exact(set(info["missing_keys"]), beyond, type(model).__name__, f"llm.path={self.path}")
        found = spec_of(model.config).width
        if found != width:
            raise CheckpointError(f"width {found}", expected=f"{width} as planned", where="llm.path")
        return model


def _require_exact(missing: set[str], beyond: set[str], kind: str, where: str) -> None:
    lines = [f"{len(missing)} missing: {', '.join(sorted(missing)[:4])}"] if missing else []
    lines += [f"{len(beyond)} that nothing here takes: {', '.join(sorted(beyond)[:4])}"] if beyond else []
    if lines:
        raise CheckpointError("; ".join(lines), expected=f"exactly the weights of {kind}", where=where,
                              fix="a whole copy of the checkpoint, with its own config.json")  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """No list of the tensors around an LLM, which nobody wants from its folder."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def spec_of(config: PretrainedConfig) -> LlmSpec:
    """The spec that a transformers config implies."""
    text = config.get_text_config()
    return LlmSpec(
        width=getattr(text, "word_embed_proj_dim", None) or text.hidden_size,  # OPT-350m embeds narrower than it thinks
        vocab_size=text.vocab_size,
        max_length_tokens=getattr(text, "max_position_embeddings", None) or 2**31 - 1,
        model_type=config.model_type,
        reads_apart=bool(config.is_encoder_decoder),
        shares_beginnings=shares_beginnings(config),
    )


def shares_beginnings(config: PretrainedConfig) -> bool:
    """Whether texts that begin alike can have that beginning computed once.

    An encoder-decoder reads each prompt whole; a sliding window counts columns, between which other texts may stand.
    """
    return not config.is_encoder_decoder and getattr(config.get_text_config(), "sliding_window", None) is None


def load_tokenizer(source: str, revision: str | None = None, where: str = "llm") -> Any:
    """The transformers tokenizer of a hub id, or of a folder that need not hold a model; `where` has it in the config.

    Raises:
        ConfigError: written as a folder that does not exist or holds no tokenizer.
        CheckpointError: it cannot be read.
    """
    return _read_tokenizer(_tokenizer_folder(source, f"{where}.tokenizer"), source, revision, where)


def _read_tokenizer(local: str, source: str, revision: str | None, where: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(local, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise hub.unavailable(source, error, where, CheckpointError) from error


def _tokenizer_folder(source: str, where: str) -> str:
    """The folder of a tokenizer alone (no config.json is needed), or the hub id as it is.

    Raises:
        ConfigError: written as a folder that does not exist or holds no tokenizer.
    """
    folder = Path(source).expanduser()
    if not hub.is_local(source):
        return source
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {source}", where=where,
                          fix="check the path, or give a hub id owner/name")  # fmt: skip
    if not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{source} holds {names}", expected="a folder with tokenizer.json or tokenizer_config.json",
                          where=where)  # fmt: skip
    return str(folder)
