"""From a request to what the model reads, with every limit checked before a picture is decoded."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mmexp.contracts import Item
from mmexp.errors import DataError
from mmexp.prompt.image import BadMediaError, image_size
from mmexp.serve.errors import ApiError, invalid
from mmexp.serve.request import ChatRequest
from mmexp.serve.settings import MIB, ServeConfig

if TYPE_CHECKING:
    from mmexp.model import Plan
    from mmexp.prompt import Processor

_MOST_CHARACTERS = 64
"""Of a token, on average over a whole prompt: a longer text is refused before it is tokenised."""


class PromptMaker:
    """Makes items of requests; several threads may.

    Args:
        plan: Of the model.
        config: The limits.
    """

    def __init__(self, plan: Plan, config: ServeConfig) -> None:
        self.plan, self.config = plan, config

    @cached_property
    def _processor(self) -> Processor:
        return replace(self.plan.processor, max_length_tokens=2**62)  # the limit is checked here, with its own words

    def make(self, request: ChatRequest) -> tuple[Item, int]:
        """The prompt, and how many tokens its answer may have.

        Raises:
            ApiError: it is longer than the context, or a picture is too large, too many, or none.
        """
        self._check_pictures(request)
        longest = self._longest(request)
        try:
            layout = self._processor.prompt_layout(request.sample)
            length = len(layout.encoded.ids)
            if length > longest:
                raise _too_long(f"the prompt has {length} tokens, pictures included", longest)
            return self._processor.load(layout, request.sample), self._limit(request, length)
        except BadMediaError as error:
            raise bad_picture(error) from None
        except DataError as error:
            expected = f": expected {error.expected}" if error.expected else ""
            raise invalid(f"{error.found}{expected}", "messages") from None

    def _longest(self, request: ChatRequest) -> int:
        """Tokens that a prompt may have. Raises ApiError for texts that cannot be within them."""
        longest = min(self.plan.max_length_tokens, self.plan.spec.max_length_tokens)
        length = sum(len(turn.text) for turn in request.sample.turns)
        if length > _MOST_CHARACTERS * longest:
            raise _too_long(f"the messages have {length} characters", longest)
        return longest

    def _limit(self, request: ChatRequest, length: int) -> int:
        """Longest answer behind a prompt of so many tokens."""
        spec, asked = self.plan.spec, request.max_tokens
        room = spec.max_length_tokens - (0 if spec.reads_apart else length)
        if room < (asked or 1):
            found = f"the prompt has {length} tokens and max_tokens is {asked or 1}"
            raise _too_long(found, spec.max_length_tokens)
        return asked or min(self.config.max_tokens, room)

    def _check_pictures(self, request: ChatRequest) -> None:
        media = [medium for turn in request.sample.turns for medium in turn.media]
        if media and "image" not in self.plan.inputs:
            raise invalid("this model takes no pictures", "messages", "unsupported_image")
        if len(media) > self.config.max_images:
            found = f"{len(media)} pictures, and {self.config.max_images} are allowed"
            raise invalid(found, "messages", "too_many_images")
        for medium in media:
            self.check_picture(medium.source)

    def check_picture(self, source: bytes) -> None:
        """Looks at the size of an encoded picture, and not further than its header. Raises ApiError."""
        if len(source) > self.config.max_image_mb * MIB:
            found = f"a picture of {len(source) / MIB:.1f} MiB, and {self.config.max_image_mb:g} are allowed"
            raise ApiError(413, found, "image_too_large", "messages")
        try:
            width, height = image_size(source)
        except BadMediaError as error:
            raise bad_picture(error) from None
        if width * height > self.config.max_image_megapixels * 1e6:
            raise ApiError(413, f"a picture of {width} x {height} pixels, and {self.config.max_image_megapixels:g}"
                           " million are allowed", "image_too_large", "messages")  # fmt: skip


def _too_long(found: str, limit: int) -> ApiError:
    return invalid(f"{found}, and the context has {limit} tokens: shorten the messages", "messages",
                   "context_length_exceeded")  # fmt: skip


def bad_picture(error: DataError) -> ApiError:
    """The answer to a picture that cannot be read."""
    expected = f": expected {error.expected}" if error.expected else ""
    return invalid(f"a picture cannot be read: {error.found}{expected}", "messages", "invalid_image")
