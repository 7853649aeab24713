"""The launcher of every entry point: command line to configuration, mistakes to one message, sweeps to fresh processes."""

from __future__ import annotations

import difflib
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmexp.config.instantiate import registered_targets
from mmexp.config.paths import conf_dir, groups, parts_dir
from mmexp.errors import ConfigError, MmexpError

log = logging.getLogger(__name__)

USER_MISTAKE = 2


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What the user asked for, after the command line was understood."""

    cfg: DictConfig
    """The composed configuration."""
    overrides: list[str]
    """As typed."""
    registered: frozenset[str]
    """Import paths that the door lets through: this package's conf/ and the user's --config-dir."""
    config_dir: str | None
    """The user's own folder of choices."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The command's own keys, which are no part of an experiment."""


def launch(
    body: Callable[[Invocation], None],
    config_name: str,
    module: str,
    own: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Composes `config_name` with the command line and calls `body`; never returns a traceback for a user's mistake.

    Args:
        body: The command.
        config_name: Primary configuration, e.g. `train`.
        module: What `python -m` runs; a sweep starts each job with it.
        own: Keys of the command itself, with their defaults; they do not enter the configuration.
        argv: Arguments; None takes the process's own.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    OmegaConf.register_new_resolver("mmexp_parts", lambda: str(parts_dir()), replace=True)
    try:
        _launch(body, config_name, module, args, dict(own or {}))
    except MmexpError as error:
        _stop(f"{type(error).__name__}: {error}", USER_MISTAKE)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(f"ConfigError: {error}", USER_MISTAKE)
    except KeyboardInterrupt:
        _stop("stopped by Ctrl-C", 130)
    except BrokenPipeError:
        _stop("", 141)


def compose(config_name: str, overrides: Sequence[str], config_dir: str | None = None) -> Invocation:
    """The configuration that a command line with these overrides means, for notebooks and tests too.

    Raises:
        ConfigError: unknown groups, choices or top-level keys, all at once.
    """
    folders = _folders(config_dir)
    rewritten = _rewrite(list(overrides), config_name, folders)
    search = [f"hydra.searchpath=[file://{folders[1]}]"] if len(folders) > 1 else []
    OmegaConf.register_new_resolver("mmexp_parts", lambda: str(parts_dir()), replace=True)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose(config_name, [*search, *rewritten])
    return Invocation(
        cfg=cfg, overrides=list(overrides), registered=registered_targets(folders), config_dir=config_dir
    )


def _launch(
    body: Callable[[Invocation], None], config_name: str, module: str, args: list[str], own: dict[str, Any]
) -> None:
    parsed = get_args_parser().parse_args(args)
    if parsed.help:
        print(_help(module, config_name, _folders(parsed.config_dir), list(own)))
        return
    for text in [text for text in parsed.overrides if text.partition("=")[0] in own]:
        key, _, value = text.partition("=")
        own[key] = yaml.safe_load(value)
        parsed.overrides.remove(text)
    if not (parsed.cfg or parsed.info or parsed.hydra_help or parsed.multirun):
        body(replace(compose(config_name, parsed.overrides, parsed.config_dir), own=own))
        return
    rewritten = _rewrite(list(parsed.overrides), config_name, _folders(parsed.config_dir))
    flags = [arg for arg in args if arg not in parsed.overrides]
    sys.argv = [f"{module}", *flags, *rewritten]
    failed: list[str] = []
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(
        lambda cfg: _job(module, flags, failed)
    )()
    if failed:
        _stop(f"{len(failed)} of the jobs failed:\n" + "\n".join(f"  {job}" for job in failed), 1)


def _job(module: str, flags: list[str], failed: list[str]) -> None:
    """One job of a sweep, in a process of its own.

    Lightning's child processes copy their parent's arguments; inside a sweep they would start all of it again.
    """
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    own = [flag for flag in flags if flag not in ("-m", "--multirun")]
    print(f"job {HydraConfig.get().job.num}: {' '.join(overrides)}", flush=True)
    if subprocess.run([sys.executable, "-m", module, *own, *overrides], check=False).returncode:
        failed.append(" ".join(overrides))


def _rewrite(overrides: list[str], config_name: str, folders: list[Path]) -> list[str]:
    """Overrides as Hydra wants them: any key of a component may be set, unknown ones are reported by our own check.

    A recipe without a scale gets `scale=paper` (see ADR 1).
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(
            str(error).splitlines()[0], where="command line", fix="write key=value; quote values with spaces"
        ) from error
    known = groups(folders)
    top = _top_level_keys(config_name, folders)
    errors = [error for override in parsed for error in _mistakes(override, known, top)]
    if errors:
        raise ConfigError.collect(list(errors))
    names = {override.key_or_group for override in parsed}
    extra = []
    if "scale" in known and "recipe" in names and "scale" not in names:
        log.info("recipe without scale: scale=paper, the published size (scale=shapes is the laptop twin)")
        extra = ["scale=paper"]
    return [_forced(text, override, known) for text, override in zip(overrides, parsed, strict=True)] + extra


def _forced(text: str, override: Override, known: dict[str, list[str]]) -> str:
    plain = override.type == OverrideType.CHANGE and override.key_or_group not in known
    return f"++{text}" if plain and not override.key_or_group.startswith("hydra") else text


def _mistakes(override: Override, known: dict[str, list[str]], top: set[str]) -> list[MmexpError]:
    key = override.key_or_group
    first = key.split(".")[0]
    if first.split("/")[0] == "hydra":
        return []
    if key in known:
        return [error for choice in _choices(override) for error in _wrong_choice(key, choice, known[key])]
    if first not in top and first not in known:
        close = difflib.get_close_matches(first, sorted(top | set(known)), n=1)
        fix = close[0] + key[len(first) :] if close else None
        return [ConfigError("unknown group or key", expected=", ".join(sorted(top | set(known))), where=key, fix=fix)]
    return []


def _choices(override: Override) -> list[str]:
    if override.type == OverrideType.DEL or override.value() is None:
        return []
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    flat: list[Any] = []
    for value in values:
        flat += value if isinstance(value, list) else [value]
    return [str(value).strip("'\"[] ") for value in flat if value is not None]


def _wrong_choice(group: str, text: str, valid: list[str]) -> list[MmexpError]:
    errors: list[MmexpError] = []
    for choice in (part.strip() for part in text.split(",")):
        if choice and choice not in valid and choice != "null":
            close = difflib.get_close_matches(choice, valid, n=1)
            errors.append(
                ConfigError(
                    f"no choice {choice!r}",
                    expected=f"one of {', '.join(valid)}",
                    where=group,
                    fix=f"{group}={close[0]}" if close else None,
                )
            )
    return errors


def _top_level_keys(config_name: str, folders: list[Path]) -> set[str]:
    file = next(folder / f"{config_name}.yaml" for folder in folders if (folder / f"{config_name}.yaml").is_file())
    return {key for key in yaml.safe_load(file.read_text(encoding="utf-8")) if key not in ("defaults", "hydra")}


def _folders(config_dir: str | None) -> list[Path]:
    if config_dir is None:
        return [conf_dir()]
    folder = Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {config_dir}", where="--config-dir")
    return [conf_dir(), folder]


def _help(module: str, config_name: str, folders: list[Path], own: list[str]) -> str:
    known = groups(folders)
    primary = (folders[0] / f"{config_name}.yaml").read_text(encoding="utf-8")
    used = [group for group in known if f"{group}:" in primary]
    lines = [f"python -m {module} [group=choice ...] [key=value ...]", "", "Groups and their choices:"]
    lines += [f"  {group}={', '.join(known[group])}" for group in used]
    keys = own + sorted(_top_level_keys(config_name, folders) - set(known))
    lines += ["", f"Keys: {', '.join(keys)}"]
    lines += [
        "",
        "  --cfg job            show the composed configuration and stop",
        "  -m a=x,y             one job for each combination",
        "  --config-dir FOLDER  your own choices, in folders named like the groups",
    ]
    return "\n".join(lines)


def _stop(message: str, code: int) -> None:
    if message:
        print(message, file=sys.stderr)
    raise SystemExit(code)
