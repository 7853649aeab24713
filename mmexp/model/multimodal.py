"""The model: encode, connect, splice, run the LLM. It knows no loss, no trainer and no recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mmexp.contracts import Batch, EncoderSpec, Output
from mmexp.llm import Sampling, Watch
from mmexp.model.splice import arrange, left_pad, splice, take_part
from mmexp.model.targets import owners_of, targets_of
from mmexp.model.together import Continuations

if TYPE_CHECKING:
    from torch import Tensor


_CHUNK_ROWS = 256
"""Positions whose logits exist at a time when answers are scored."""


class Branch(nn.Module):
    """One modality's way into the LLM: encoder, then connector.

    Args:
        encoder: float[M, ...] to float[M, P, E].
        connector: float[M, P, E] to float[M, N, D].
        spec: The encoder's spec.
    """

    def __init__(self, encoder: nn.Module, connector: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self.spec = spec
        self.keeps_queries = False
        """Whether `kept` is what the connector's trunk made earlier (its own, not the features of the encoder)."""

    def forward(
        self,
        values: Tensor | None,
        kept: Tensor | None = None,
        order: Tensor | None = None,
        instruction: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Soft tokens float[M, N, D] of what `encode` takes, and `Batch.instruction` for a connector that reads it."""
        if self.keeps_queries:
            return self.connector.finish(self._stems(values, kept, order))  # type: ignore[operator]  # see `stem`
        return self.connector(self.features(values, kept, order), *(instruction or ()))

    def features(self, values: Tensor | None, kept: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """What the connector is given, float[M, P, E], of what `encode` takes."""
        features = self.encode(values, kept, order)
        return features.to(dtype_of(self.connector, features.dtype))

    def encode(self, values: Tensor | None, kept: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """The features of all M media, float[M, P, E].

        Args:
            values: Of the media that have to be encoded, float[M - F, ...]; None where all features are there.
            kept: What `stem` made of others earlier, float[F, P, E].
            order: int64[M], where each of the M stands in the features of `values` followed by `kept`; None where
                they stand there in order.
        """
        if kept is None:
            made = self.encoder(values).contiguous()  # as what is kept: products round by the order in memory
            return made if order is None else made[order]
        outputs, finish = self._stems(values, kept, order), getattr(self.encoder, "finish", None)
        return outputs if finish is None else finish(outputs)

    def stem(self, values: Tensor) -> Tensor:
        """What of the way of float[M, ...] can be kept: what the encoder makes, or its trunk where it has one; with
        `keeps_queries` what the connector's trunk makes of the features."""
        if self.keeps_queries:
            return self.connector.trunk(self.features(values))  # type: ignore[operator]  # a connector with a trunk
        return trunk_of(self.encoder)(values)

    @property
    def stem_modules(self) -> list[nn.Module]:
        """What `stem` runs; the output of the last one is its own."""
        if self.keeps_queries:
            return [self.encoder, self.connector.trunk]  # type: ignore[list-item]  # a connector with a trunk
        return [trunk_of(self.encoder)]

    def _stems(self, values: Tensor | None, kept: Tensor | None, order: Tensor | None) -> Tensor:
        """Those of all M media."""
        if values is None:
            assert kept is not None
            return kept
        made = self.stem(values)
        made = made if kept is None else torch.cat([made, kept])
        return made if order is None else made[order]

    @property
    def newline(self) -> Tensor | None:
        """float[D], the learned end of a row of soft tokens, where the plan gave the connector one."""
        return getattr(self.connector, "newline", None)

    def idle(self, like: Tensor) -> Tensor:
        """Soft tokens of an item of zeros that depend on every weight: for a batch that has none of this modality."""
        word = None
        if getattr(self.connector, "reads_instruction", False):
            ids = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
            word = ids, torch.ones_like(ids, dtype=torch.bool)
        soft = self(torch.zeros(1, *self.spec.item_shape, device=like.device), instruction=word)
        return soft if self.newline is None else soft + self.newline.to(soft.dtype)


class MultimodalModel(nn.Module):
    """Encoders and connectors around one LLM.

    Args:
        llm: A module with the methods of `mmexp.llm.Llm`.
        inputs: Per modality its branch.
    """

    def __init__(self, llm: nn.Module, inputs: Mapping[str, Branch]) -> None:
        super().__init__()
        self.llm: Any = llm
        self.inputs = nn.ModuleDict(inputs)
        self.runs_every_branch = False
        """Whether a training batch without a modality runs its branch on an empty item even where nothing trains."""

    def forward(self, batch: Batch, rows: Tensor | None = None) -> Output:
        """The last hidden states, and the soft tokens.

        Args:
            batch: Rows of segments.
            rows: int64[K], ascending places in the flattened batch whose hidden states are wanted; None for all.
        """
        embeds, soft = self.embed(batch)
        lengths = batch.segment_lengths, batch.prompt_lengths
        hidden = self.llm.hidden(embeds, batch.positions, *lengths, rows, batch.followers)
        return Output(hidden=hidden, soft=soft)

    def embed(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings float[B, T, D] with soft tokens in their slots, and per modality float[M, N, D]."""
        embeds = self.llm.embed(batch.input_ids)
        soft: dict[str, Tensor] = {}
        for modality, branch in self._branches():
            if modality in batch.media_owners:
                soft[modality] = branch(*batch.encodes(modality), batch.instruction(modality))
                placed = soft[modality]
                if modality in batch.gather:
                    placed = arrange(placed, batch.gather[modality], branch.newline, batch.blend.get(modality))
                embeds = splice(
                    embeds,
                    placed,
                    batch.slots[modality],
                    modality=modality,
                    slot_lengths=batch.slot_lengths[modality],
                    owners=batch.media_owners[modality],
                    views=batch.views.get(modality),
                )
            elif torch.is_grad_enabled() and (self.runs_every_branch or trains(branch)):
                embeds = take_part(embeds, branch.idle(embeds))
        return embeds, soft

    @torch.inference_mode()
    def generate(
        self,
        batch: Batch,
        tokenizer: Any,
        sampling: Sampling,
        on_text: Callable[[str], None] | None = None,
        continuations: Continuations | None = None,
        watch: Watch | None = None,
    ) -> list[str]:
        """One answer for each sample of a padded batch of prompts (one segment in each row), or for each of the
        `continuations` of its rows; `on_text` and `watch` are as in `Llm.generate`."""
        embeds, _ = self.embed(batch)
        if continuations is not None:
            rows, mask, beginning = continuations.lay_out(embeds, self.llm.embed)
            return self.llm.generate(rows, mask, tokenizer, sampling, on_text, beginning)
        rows, mask = left_pad(embeds, [sum(lengths) for lengths in batch.segment_lengths])
        more = {} if watch is None else {"watch": watch}  # an LLM that is never served need not know it
        return self.llm.generate(rows, mask, tokenizer, sampling, on_text, **more)

    @torch.inference_mode()
    def score(self, batch: Batch) -> list[float]:
        """Per sample the summed log-probability of its supervised tokens, in the order of `batch.ids`."""
        places, rows = targets_of(batch)
        hidden, labels = self(batch, rows).hidden, batch.labels.flatten()[places]
        pairs = zip(hidden.split(_CHUNK_ROWS), labels.split(_CHUNK_ROWS), strict=True)
        losses = [functional.cross_entropy(self.llm.logits(h).float(), own, reduction="none") for h, own in pairs]
        sums = torch.zeros(len(batch.ids), dtype=torch.float32, device=labels.device)
        owners = owners_of(batch).to(labels.device)
        return (-sums.index_add(0, owners[places], torch.cat(losses))).tolist()

    def _branches(self) -> list[tuple[str, Branch]]:
        return list(self.inputs.items())  # type: ignore[arg-type]

    def parts(self) -> dict[str, nn.Module]:
        """The trees that a policy speaks of: `encoder`, `connector` (of images), `<modality>.encoder`, ..., `llm`."""
        parts: dict[str, nn.Module] = {}
        for modality, branch in self._branches():
            prefix = "" if modality == "image" else f"{modality}."
            parts |= {f"{prefix}encoder": branch.encoder, f"{prefix}connector": branch.connector}
        return parts | {"llm": self.llm}


def trunk_of(part: nn.Module) -> nn.Module:
    """What of an encoder is kept: the child `trunk` where it can go on from its output (`finish`), else all of it."""
    trunk: Any = part.trunk if hasattr(part, "finish") else part
    return trunk


def dtype_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """The dtype of a module's weights; `default` when it has none."""
    parameter = next(module.parameters(), None)
    return default if parameter is None else parameter.dtype


def trains(module: nn.Module) -> bool:
    """Whether any weight of it wants a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())
