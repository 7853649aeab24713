"""Runs that differ only in the seed are one group; what tells groups apart, and how they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmexp.compare.record import Record
from mmexp.compare.settings import Settings, differing, identity, shown

_TARGET = "_target_"
_MAX_LABEL_PARTS = 4
_NOTHING = "default"
"""Label of a group for which nothing was typed."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs with the same settings, one of each seed."""

    label: str
    records: Sequence[Record]

    @property
    def settings(self) -> Settings:
        """Of all its runs."""
        return self.records[0].settings


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One thing that was varied: a setting, or a whole component with its settings."""

    name: str
    values: Sequence[str]
    """One for each group, for people."""


def group_records(records: Sequence[Record]) -> tuple[list[Group], list[tuple[str, str]]]:
    """Groups in the order of their first run, and the runs that repeat a seed of their group with the reason."""
    by_settings: dict[str, dict[object, Record]] = {}
    left_out: list[tuple[str, str]] = []
    for record in records:
        seeds = by_settings.setdefault(identity(record.settings), {})
        before = seeds.get(record.seed)
        if before is not None:
            left_out.append((before.name, f"same settings and seed as {record.name}, which is taken"))
        seeds[record.seed] = record
    many = [_by_seed(list(seeds.values())) for seeds in by_settings.values()]
    return [Group(label=label, records=own) for label, own in zip(_labels(many), many, strict=True)], left_out


def factors(many: Sequence[Settings]) -> list[Factor]:
    """What differs between these settings. Where a component's class differs, its settings belong to it."""
    keys = differing(many)
    swapped = [key.removesuffix(f".{_TARGET}") for key in keys if key.endswith(f".{_TARGET}")]
    swapped = [name for name in swapped if not any(name.startswith(f"{other}.") for other in swapped)]
    found: dict[str, Factor] = {}
    for key in keys:
        owner = next((name for name in swapped if key.startswith(f"{name}.")), key)
        if owner not in found:
            own = [other for other in keys if other.startswith(f"{owner}.")] if owner in swapped else [key]
            found[owner] = Factor(name=owner, values=[_value(settings, owner, own) for settings in many])
    return list(found.values())


def value_of(settings: Settings, key: str) -> str:
    """One setting for people: a class without its module, what is not there as a dash."""
    value = settings.get(key)
    if key.endswith(_TARGET) and isinstance(value, str):
        return value.rsplit(".", 1)[-1].removesuffix("Config")
    return shown(value)


def _value(settings: Settings, owner: str, keys: Sequence[str]) -> str:
    if keys == [owner]:
        return value_of(settings, owner)
    said = [value_of(settings, f"{owner}.{_TARGET}")]
    said += [f"{key.removeprefix(f'{owner}.')}={value_of(settings, key)}" for key in keys
             if not key.endswith(_TARGET) and key in settings]  # fmt: skip
    return " ".join(said)


def _by_seed(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.seed is None, record.seed or 0))


def _labels(many: Sequence[Sequence[Record]]) -> list[str]:
    """What was typed where that tells the groups apart; where it does not, the settings that differ besides."""
    if len(many) == 1:
        return ["/".join(many[0][0].name.split("/")[:-1]) or many[0][0].name]
    labels = _typed_labels([own[0].overrides for own in many])
    for label in [label for label, count in Counter(labels).items() if count > 1]:
        alike = [at for at, other in enumerate(labels) if other == label]
        varied = factors([many[at][0].settings for at in alike])
        for place, at in enumerate(alike):
            beside = [f"{factor.name}={factor.values[place]}" for factor in varied]
            labels[at] = _joined([*(label.split(" ") if label != _NOTHING else []), *beside], len(label.split(" ")) + 1)
    return _numbered(labels)


def _numbered(labels: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        seen[label] += 1
        found.append(f"{label} ({seen[label]})" if seen[label] > 1 else label)
    return found


def _typed_labels(many: Sequence[Sequence[str]]) -> list[str]:
    own = [[text for text in texts if text.split("=")[0] != "stage.init_from"] for texts in many]
    everywhere: Mapping[str, int] = Counter(text for texts in own for text in set(texts))
    return [_joined([text for text in texts if everywhere[text] < len(own)]) for texts in own]


def _joined(parts: Sequence[str], at_least: int = 0) -> str:
    shown = max(_MAX_LABEL_PARTS, at_least)
    rest = len(parts) - shown
    return " ".join([*parts[:shown], *([f"+{rest}"] if rest > 0 else [])]) or _NOTHING
