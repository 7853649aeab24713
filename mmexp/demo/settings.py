"""What the page is told, and who may see it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from mmexp.errors import ConfigError
from mmexp.serve import ServeConfig

AUTH = "MMEXP_DEMO_AUTH"
"""Environment variable with `user:password`; on a command line, every user of the machine could read it."""
_MOST_RUNS = 2


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What `mmexp.demo` takes."""

    run: str | tuple[str, ...]
    """Run directory, or two of them, which then answer the same questions side by side."""
    host: str = "127.0.0.1"
    """Address that it listens at; another than this machine's own needs a password."""
    port: int = 7860
    """0 takes a free one; the log says which."""
    num_examples: int = 8
    """Pictures with questions of the first run's benchmarks that one can pick."""
    max_batch: int = 8
    """Visitors who are answered together."""
    max_queue: int = 16
    """Questions that may wait; the next one is refused."""
    max_tokens: int = 512
    """Longest answer that can be asked for."""
    timeout_s: float = 120.0
    """From a question to the end of its answers."""
    max_image_mb: float = 10.0
    """Largest picture as a file, MiB."""
    max_image_megapixels: float = 40.0
    """Largest picture, millions of pixels."""
    max_images: int = 8
    """Pictures of one conversation."""

    def __post_init__(self) -> None:
        """Raises ConfigError for no run or too many, and for every number out of its range."""
        if not 1 <= len(self.runs) <= _MOST_RUNS:
            raise ConfigError(f"{len(self.runs)} runs", expected="one run directory, or two", where="run",
                              fix="run=DIR, or run=[DIR,OTHER]")  # fmt: skip
        if self.num_examples < 0:
            raise ConfigError(f"{self.num_examples}", expected="at least 0", where="num_examples")
        _ = self.limits

    @property
    def runs(self) -> tuple[str, ...]:
        """`run`, one or two."""
        return (self.run,) if isinstance(self.run, str) else self.run

    @cached_property
    def limits(self) -> ServeConfig:
        """The limits that the server has too, in its words."""
        names = ("host", "port", "max_batch", "max_queue", "max_tokens", "timeout_s", "max_image_mb",
                 "max_image_megapixels", "max_images")  # fmt: skip
        return ServeConfig(run=self.runs[0], **{name: getattr(self, name) for name in names})


def password(is_own: bool) -> tuple[str, str] | None:
    """User and password, None where nobody has to give them. No message holds any of it.

    Args:
        is_own: Whether only this machine reaches the address.

    Raises:
        ConfigError: the address is open to other machines and no password is set, or what is set is none.
    """
    given = os.environ.get(AUTH)
    if given is None:
        if is_own:
            return None
        raise ConfigError("other machines reach this address, and no password is set", expected="a password",
                          where="host", fix=f"{AUTH}=user:password in the environment, or host=127.0.0.1")  # fmt: skip
    user, _, secret = given.partition(":")
    if not user or not secret:
        raise ConfigError("something else (not shown)", expected="user:password", where=AUTH)
    return user, secret
