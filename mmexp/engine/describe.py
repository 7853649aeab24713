"""A run that describes pictures at length, in one answer or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmexp.contracts import Medium, Sample, Text, Turn
from mmexp.data.caption import Description

if TYPE_CHECKING:
    from mmexp.engine.predict import Generator
    from mmexp.llm import Sampling

_SLACK = 2
"""Tokens are counted anew from the answer's text, which may give a token or two less than were written."""


@dataclass(frozen=True, kw_only=True)
class Describer:
    """Asks for a description, and once more where the first answer is short.

    Source: MiniGPT-4 (Zhu et al. 2023), section 3.2; both answers are joined by a space.
    """

    generator: Generator
    prompt: str
    continue_prompt: str
    min_tokens: int
    """A first answer with fewer tokens is followed by `continue_prompt`."""
    sampling: Sampling

    def __call__(self, pictures: Sequence[tuple[str, Medium]]) -> list[Description]:
        """From ids and pictures to descriptions, in order."""
        if not pictures:
            return []
        asked = [
            Sample(id=key, turns=(Turn(role="user", parts=(picture, Text(text="\n"), Text(text=self.prompt))),))
            for key, picture in pictures
        ]
        first = self.generator.predict(asked, self.sampling)
        found = [self._description([answer]) for answer in first]
        short = [index for index, said in enumerate(found) if said.num_tokens < self.min_tokens]
        if short:
            more = self.generator.predict([self._followed(asked[i], first[i]) for i in short], self.sampling)
            for index, answer in zip(short, more, strict=True):
                found[index] = self._description([first[index], answer])
        return found

    def _followed(self, sample: Sample, answer: str) -> Sample:
        said = Turn(role="assistant", parts=(Text(text=answer),))
        return replace(sample, turns=(*sample.turns, said, Turn(role="user", parts=(Text(text=self.continue_prompt),))))

    def _description(self, answers: Sequence[str]) -> Description:
        tokenizer = self.generator.plan.hf_tokenizer
        counts = [len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
        return Description(
            text=" ".join(answer for answer in answers if answer),
            num_tokens=sum(counts),
            is_cut=counts[-1] > self.sampling.max_new_tokens - _SLACK,
            is_continued=len(answers) > 1,
        )
