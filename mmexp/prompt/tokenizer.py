"""Segments to token ids. Text between media is tokenised once; supervision follows characters, never a second pass."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mmexp.contracts import MediaRun, Medium, Segment
from mmexp.errors import ConfigError, DataError
from mmexp.prompt.encoded import Encoded
from mmexp.prompt.template import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ROLES = ("bos", "eos")

SlotLength = Callable[[Medium], int]
"""How many slots a medium takes, where that is not the same for all of its kind."""


class SegmentTokenizer:
    """Tokenises segments as the published preprocessing of LLaVA does, without letting user text become control tokens.

    Text between two media, or between a medium and a control token, is one piece, so that merges are as published. A
    piece at the start or behind a medium is tokenised afresh (a SentencePiece model then puts its prefix space), a
    piece behind a control token continues (no prefix space), as the same tokenizer does with special tokens inside a
    string. A template can set such borders itself (`{piece}`, `after_medium`).
    Source: haotian-liu/LLaVA @ c121f04 llava/mm_utils.py tokenizer_image_token.

    Args:
        tokenizer: A fast tokenizer of transformers, kept as `hf` for generation.
        new_tokens: Special tokens to add to a copy of it when it lacks them.

    Raises:
        ConfigError: the tokenizer has no fast backend.
    """

    # Any: transformers' tokenizer classes share no useful static type
    def __init__(self, tokenizer: Any, new_tokens: Sequence[str] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"the tokenizer {type(tokenizer).__name__} has no fast backend",
                expected="a tokenizer with character offsets (tokenizer.json)",
                where="llm",
                fix="point llm.tokenizer to a folder with tokenizer.json",
            )
        known = tokenizer.get_vocab() if new_tokens else {}
        self.new_tokens = tuple(token for token in new_tokens if token not in known)
        if self.new_tokens:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.add_tokens(list(self.new_tokens), special_tokens=True)
            backend = tokenizer.backend_tokenizer
        self.hf = tokenizer
        self._fresh = private_copy(backend.to_str())
        self._continued = private_copy(_without_first_prefix(backend.to_str()))
        self._roles = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
        self._special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self._special |= {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = frozenset(self._special.values()) - {tokenizer.unk_token_id}
        self._names = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or "(?!)")
        candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
        self._pad_id = next((index for index in candidates if index is not None), 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickling a backend forgets that special tokens in text stay text; data workers must not."""
        self.__dict__.update(state)
        self._fresh.encode_special_tokens = self._continued.encode_special_tokens = True

    @property
    def pad_id(self) -> int:
        """Fills slots and padding, where the model never reads it: the pad token, else unk, else eos, else 0."""
        return self._pad_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._fresh.get_vocab_size(with_added_tokens=True)

    @property
    def puts_prefix_space(self) -> bool:
        """Whether text at the start of a string gets a space that the same text in its middle does not get."""
        return self._tokenize("a", True)[0] != self._tokenize("a", False)[0]

    def control_id(self, name: str) -> int:
        """Id of a control token: `bos` or `eos` by role, anything else by the special token's literal name.

        Raises:
            ConfigError: the tokenizer does not have it.
        """
        found = self._roles.get(name) if name in _ROLES else self._special.get(name)
        if found is None:
            near = [] if name in _ROLES else difflib.get_close_matches(name, self._special, n=1, cutoff=0.4)
            has = ", ".join(sorted(self._special, key=self._special.__getitem__)[:12]) or "none"
            raise ConfigError(
                f"the template writes {{{name}}}, which this tokenizer does not have",
                expected=f"one of its special tokens: {has}",
                where="template",
                fix=f"{near[0]!r} instead" if near else "another template, or one without that mark (template.begin=)",
            )
        return found

    def check(self, template: ChatTemplate) -> None:
        """Raises ConfigError when the tokenizer lacks a control token that the template writes."""
        for name in template.controls:
            self._ids_of(name)

    def stop_ids(self, template: ChatTemplate) -> tuple[int, ...]:
        """Ids that end generation: what closes an answer, the stop text if it is one token, the tokenizer's own end."""
        ids = [index for name in template.stop_controls for index in self._ids_of(name)]
        text = self._tokenize(template.stop, False)[0] if template.stop else []
        ids += text if len(text) == 1 else []
        return tuple(dict.fromkeys(ids + [index for index in [self._roles["eos"]] if index is not None]))

    def encode(self, segments: Sequence[Segment], slot_lengths: Mapping[str, int | SlotLength]) -> Encoded:
        """Ids, supervision flags and slots; every medium takes `slot_lengths[modality]` slots that hold the pad id.

        Raises:
            DataError: a medium of a modality that the model has no branch for.
        """
        out, fresh = Encoded(), True
        pending: list[Segment] = []

        def flush() -> None:
            self._encode_text(pending, fresh, out)
            pending.clear()

        for segment in segments:
            if segment.fresh is not None:
                flush()
                fresh = segment.fresh
            if segment.medium is not None:
                flush()
                length = _slot_length(segment.medium, slot_lengths)
                out.runs.append(MediaRun(modality=segment.medium.modality, start=len(out.ids), length=length))
                out.append([self._pad_id] * length, [False] * length)
                fresh = True
            elif segment.control is not None:
                ids = self._ids_of(segment.control)
                if ids:
                    flush()
                    # A leading bos is what tokenizers add on their own before the first piece: that piece stays fresh.
                    fresh = segment.control.rstrip("?") == "bos" and not out.ids
                    out.append(ids, [segment.supervised])
            elif segment.text:
                pending.append(segment)
        flush()
        return out

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        return self._fresh.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One readable piece per id, for previews."""
        return [self._fresh.id_to_token(index) or f"<{index}>" for index in ids]

    def _ids_of(self, control: str) -> list[int]:
        """The id of a control token; none for an optional one (`bos?`) that the tokenizer lacks."""
        name = control.removesuffix("?")
        optional = name != control
        known = self._roles.get(name) if name in _ROLES else self._special.get(name)
        return [] if optional and known is None else [self.control_id(name)]

    def _encode_text(self, segments: Sequence[Segment], fresh: bool, out: Encoded) -> None:
        """Tokenises the joined segments; a token is supervised iff its last character is."""
        if not segments:
            return
        text = "".join(segment.text for segment in segments)
        flags = [segment.supervised for segment in segments for _ in segment.text]
        ids, ends = self._tokenize(text, fresh)
        if not self._special_ids.isdisjoint(ids):
            ids, ends = self._tokenize_apart(text, fresh)
        out.append(ids, (flags[max(end - 1, 0)] for end in ends))

    def _tokenize(self, text: str, fresh: bool) -> tuple[list[int], list[int]]:
        """Ids, and the character behind each token."""
        encoding = (self._fresh if fresh else self._continued).encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    def _tokenize_apart(self, text: str, fresh: bool) -> tuple[list[int], list[int]]:
        """As `_tokenize`, for vocabularies whose merges spell a special token out of plain text (InternLM2 and `<s>`):
        the text is cut behind the first character of every such name, so that no merge can reach the whole of it."""
        cuts = sorted({0, len(text), *(found.start() + 1 for found in self._names.finditer(text))})
        ids: list[int] = []
        ends: list[int] = []
        for start, end in pairwise(cuts):
            piece_ids, piece_ends = self._tokenize(text[start:end], fresh and not start)
            ids += piece_ids
            ends += [start + piece_end for piece_end in piece_ends]
        return ids, ends


def _slot_length(medium: Medium, slot_lengths: Mapping[str, int | SlotLength]) -> int:
    modality = medium.modality
    if modality not in slot_lengths:
        has = ", ".join(slot_lengths) or "none (text only)"
        raise DataError(
            f"the conversation holds {modality!r}, which this model has no encoder for",
            expected=f"modalities of the model: {has}",
            fix="add an encoder and a connector for it, or use data without it",
        )
    length = slot_lengths[modality]
    return length if isinstance(length, int) else length(medium)


def private_copy(serialized: str) -> Tokenizer:
    """A backend of our own: special tokens in text stay text, and nothing is cut or padded behind our back."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(serialized)
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _without_first_prefix(serialized: str) -> str:
    """The same tokenizer for text that continues: a prefix space that belongs only to a string's start is left out.

    Legacy Llama tokenizers put the space before every piece by their own design; they are left as they are.
    """
    state = json.loads(serialized)

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
                node["prepend_scheme"] = "never"
            for child in node.values():
                visit(child)
        elif isinstance(node, list):
            for child in node:
                visit(child)

    visit(state.get("pre_tokenizer"))
    return json.dumps(state)
