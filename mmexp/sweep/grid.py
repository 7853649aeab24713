"""From swept overrides to the overrides of each job."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from mmexp.errors import ConfigError

OF_THE_SWEEP = ("hydra", "sweep")
"""First names of what concerns the sweep and not its jobs."""
_NAMED_BY_THE_SWEEP = ("run_id", "resume")


def expand(overrides: Sequence[str], groups: Mapping[str, list[str]]) -> list[list[str]]:
    """Every combination of the swept values, in the order in which the keys were given; the last key moves fastest.

    Args:
        overrides: As typed, such as `connector=linear,mlp2x` and `seed=1,2,3`. A key that is given again takes the
            place of the earlier one, so what comes later narrows what came before.
        groups: Group to its choices, for `glob(...)`.

    Raises:
        ConfigError: a value cannot be swept in a grid, or is the sweep's to say.
    """
    choices: dict[str, list[str]] = {}
    for override in _parsed(overrides):
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] in OF_THE_SWEEP:
            continue
        if key in _NAMED_BY_THE_SWEEP:
            raise ConfigError(
                f"{key} of a sweep",
                expected="that the sweep names its runs itself, so that no two jobs write into one",
                where=str(override.input_line),
                fix="sweep.dir=<directory> names the sweep; sweep.resume=<directory> continues one",
            )
        name = override.get_key_element().lstrip("+")
        choices[name] = _values(override, groups)
    return [list(job) for job in itertools.product(*choices.values())]


def own_overrides(overrides: Sequence[str]) -> list[str]:
    """Those that concern the sweep: `sweep.*`, `hydra.*` and `hydra/*`."""
    return [text for text, override in zip(overrides, _parsed(overrides), strict=True)
            if override.key_or_group.split(".")[0].split("/")[0] in OF_THE_SWEEP]  # fmt: skip


def for_the_search(overrides: Sequence[str]) -> list[str]:
    """What a sweeper of Hydra's is to know: of a key that is given twice the later one, and nothing that is ours."""
    last = {
        override.get_key_element().lstrip("+"): text
        for text, override in zip(overrides, _parsed(overrides), strict=True)
        if not override.key_or_group.startswith(("sweep.", "hydra.launcher", "hydra/launcher"))
    }
    return list(last.values())


def fixed(overrides: Sequence[str]) -> list[str]:
    """Those that are the same in every job."""
    return [t for t, o in zip(overrides, _parsed(overrides), strict=True) if not o.is_sweep_override()]


def alternatives(overrides: Sequence[str], key: str) -> list[str | None]:
    """The choices among which `key` is swept; one None where it is not."""
    for override in _parsed(overrides):
        if override.key_or_group == key and override.is_choice_sweep():
            return list(override.sweep_string_iterator())
    return [None]


def value_of(overrides: Sequence[str], key: str) -> str | None:
    """What `key` is set to, a list with `+` between its values; None where it is not given, or null."""
    for override in _parsed(overrides):
        if override.key_or_group == key and not override.is_sweep_override() and override.value() is not None:
            value = override.value()
            return "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return None


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"cannot be read: {str(error).splitlines()[0]}", where=" ".join(overrides)) from error


def _values(override: Override, groups: Mapping[str, list[str]]) -> list[str]:
    text = str(override.input_line)
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        raise ConfigError(
            "a continuous range has no grid",
            expected="values (a,b,c), choice(...) or range(start,stop,step)",
            where=text,
            fix="hydra/sweeper=optuna searches ranges",
        )
    key = text.split("=", 1)[0]
    if isinstance(glob := override.value(), Glob):
        found = glob.filter(groups.get(override.key_or_group, []))
        if not found:
            raise ConfigError("fits no choice", expected="a group, and a pattern of its choices", where=text)
        return [f"{key}={name}" for name in found]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
