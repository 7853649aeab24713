"""The errors a user can cause. Each says what was found, what was expected, where, and what to try."""

from __future__ import annotations


class MmexpError(Exception):
    """A mistake that the user can mend. Entry points print it without a traceback and exit with code 2.

    Args:
        found: What is there, as the user would recognise it.
        expected: What would have been right; left out when `found` already says it.
        where: Config path, file, sample id or tensor name.
        fix: One concrete thing to try.
    """

    def __init__(
        self, found: str, *, expected: str | None = None, where: str | None = None, fix: str | None = None
    ) -> None:
        self.found, self.expected, self.where, self.fix = found, expected, where, fix
        super().__init__(self.render())

    def render(self) -> str:
        """The message: `where: found`, then one indented line each for what was expected and what to try."""
        lines = [f"{self.where}: {self.found}" if self.where else self.found]
        lines += [f"  expected: {self.expected}"] if self.expected else []
        lines += [f"  try: {self.fix}"] if self.fix else []
        return "\n".join(lines)

    def __reduce__(self) -> tuple:
        """Keeps the fields when the error crosses a process border (data workers)."""
        return _rebuild, (type(self), self.found, self.expected, self.where, self.fix)


class ConfigError(MmexpError):
    """The configuration cannot be run. `errors` holds every mistake that was found, not only the first."""

    def __init__(
        self,
        found: str,
        *,
        expected: str | None = None,
        where: str | None = None,
        fix: str | None = None,
        errors: list[MmexpError] | None = None,
    ) -> None:
        self.errors = errors or []
        super().__init__(found, expected=expected, where=where, fix=fix)

    @classmethod
    def collect(cls, errors: list[MmexpError]) -> ConfigError:
        """One error that lists all of `errors`; the error itself when there is only one."""
        if len(errors) == 1 and isinstance(errors[0], ConfigError):
            return errors[0]
        body = "\n".join(f"{number}. {error.render()}" for number, error in enumerate(errors, 1))
        return cls(f"{len(errors)} mistakes in the configuration\n{body}", errors=errors)


class DataError(MmexpError):
    """A sample, a file or a dataset cannot be used."""


class SpliceError(MmexpError):
    """The number of soft tokens and the number of slots in the text differ."""


class CheckpointError(MmexpError):
    """Weights or a run directory do not belong to this model, or are damaged."""


def _rebuild(cls: type[MmexpError], found: str, expected: str | None, where: str | None, fix: str | None) -> MmexpError:
    return cls(found, expected=expected, where=where, fix=fix)
