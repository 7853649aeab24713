"""What a server is told, and what it lets through."""

from __future__ import annotations

from dataclasses import dataclass

from mmexp.errors import ConfigError

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What `mmexp.serve` takes."""

    run: str
    """Run directory."""
    host: str = "127.0.0.1"
    """Address that it listens at; the default is reached from this machine only."""
    port: int = 8000
    """0 takes a free one; the log says which."""
    model: str | None = None
    """Name of the model in requests; null takes the last three folders of the run."""
    max_batch: int = 8
    """Requests that are answered together."""
    max_queue: int = 64
    """Requests that may wait or be answered at a time; the next one gets status 429."""
    max_tokens: int = 512
    """Longest answer; also the answer's limit of a request that says nothing."""
    timeout_s: float = 120.0
    """From the first byte of a request to the last one of its answer."""
    max_body_mb: float = 32.0
    """Largest request, MiB; pictures are a third larger in it than their files."""
    max_image_mb: float = 10.0
    """Largest picture as a file, MiB."""
    max_image_megapixels: float = 40.0
    """Largest picture, millions of pixels."""
    max_images: int = 8
    """Pictures of one conversation."""
    max_messages: int = 64
    """Messages of one conversation."""
    exact: bool = True
    """Whether greedy answers must be those of one request at a time, whatever is answered beside them: where two tokens
    come too close for the rounding of a batch, an answer is made again, alone. With 16-bit weights that is most of
    them, and false is faster."""

    def __post_init__(self) -> None:
        """Raises ConfigError for every number out of its range."""
        least = {"port": 0, "max_images": 0, "timeout_s": 0.01, "max_body_mb": 0.001, "max_image_mb": 0.001,
                 "max_image_megapixels": 0.001, "max_batch": 1, "max_queue": 1, "max_tokens": 1,
                 "max_messages": 1}  # fmt: skip
        errors = [
            ConfigError(f"{getattr(self, name)}", expected=f"at least {low}", where=name)
            for name, low in least.items()
            if not getattr(self, name) >= low
        ]
        if self.port > 65535:
            errors.append(ConfigError(f"{self.port}", expected="at most 65535", where="port"))
        if self.model is not None and not self.model.strip():
            errors.append(ConfigError("empty", expected="a name, or null", where="model"))
        if errors:
            raise ConfigError.collect([*errors])
