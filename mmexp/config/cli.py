"""The launcher of every entry point: from the command line to a configuration, one message, or a sweep of processes."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mmexp.config import resolvers
from mmexp.config.check import check
from mmexp.config.commands import DataCheckConfig, DataConvertConfig, DataFetchConfig, DoctorConfig, PreviewConfig
from mmexp.config.help import help_text
from mmexp.config.instantiate import registered_targets
from mmexp.config.multirun import Multirun
from mmexp.config.overrides import CommandLine, understand
from mmexp.config.paths import conf_dir, folders_of, search_path
from mmexp.config.spine import own_keys
from mmexp.errors import ConfigError, MmexpError

USER_MISTAKE = 2
RUNS: Mapping[str, tuple[str, ...]] = {
    "train": (),
    "preview": own_keys(PreviewConfig),
    "doctor": own_keys(DoctorConfig),
    "data_check": own_keys(DataCheckConfig),
    "data_convert": own_keys(DataConvertConfig),
    "data_fetch": own_keys(DataFetchConfig),
}
"""Primary configurations that describe a run, and the keys of their own."""
_QUIET = (
    "hydra.searchpath=['file://.']",
    "hydra.output_subdir=null",
    "hydra.sweep.subdir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)
"""Hydra schedules, and writes nothing of its own."""


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
    choices: Mapping[str, str] = field(default_factory=dict)
    """Group to the choice that was taken; groups without one are left out."""


def launch(
    body: Callable[[Invocation], None],
    config_name: str,
    module: str,
    argv: Sequence[str] | None = None,
    bare: str | None = None,
    sweep: Callable[[Multirun], int] | None = None,
) -> None:
    """Composes `config_name` with the command line and calls `body`; never shows a traceback for a user's mistake.

    Args:
        body: The command.
        config_name: Primary configuration, e.g. `train`.
        module: What `python -m` runs; a sweep starts each job with it.
        argv: Arguments; None takes the process's own.
        bare: Key of a list that words without `=` belong to.
        sweep: Schedules the jobs of `-m`, and returns the exit code; without it they follow each other, unrecorded.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # lengths change with every step, and with them what is asked for
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    try:
        _launch(body, config_name, module, args if bare is None else gather(args, bare), sweep)
    except MmexpError as error:
        _stop(f"{type(error).__name__}: {error}", USER_MISTAKE)
    except (HydraException, OmegaConfBaseException) as error:
        _stop(f"ConfigError: {error}", USER_MISTAKE)
    except KeyboardInterrupt:
        _stop("stopped by Ctrl-C", 130)
    except BrokenPipeError:
        _stop("", 141)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _stop(f"DataError: no space left on the disk: {error}\n  try: make room, then the same command", USER_MISTAKE)


def gather(args: Sequence[str], key: str) -> list[str]:
    """Words that are neither flag nor override become one override: `a b out=c` -> `out=c key=['a','b']`.

    Raises:
        ConfigError: the key is given as well.
    """
    words = get_args_parser().parse_intermixed_args(list(args)).overrides
    bare = [word for word in words if "=" not in word and not word.startswith("~")]
    if not bare:
        return list(args)
    if any(word.split("=")[0] == key for word in words):
        raise ConfigError(f"both {bare[0]!r} and {key}= are given", expected="one of them", where="command line",
                          fix=f"{key}=[{bare[0]},...]")  # fmt: skip
    quoted = ("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in bare)
    return [*(arg for arg in args if arg not in bare), f"{key}=[{','.join(quoted)}]"]


def compose(
    config_name: str, overrides: Sequence[str], config_dir: str | None = None, *, with_hydra: bool = False
) -> Invocation:
    """The configuration that a command line with these overrides means, for notebooks and tests too.

    Args:
        config_name: Primary configuration, e.g. `train`.
        overrides: As typed.
        config_dir: The user's own folder of choices.
        with_hydra: Whether Hydra's own node, which says how to sweep, is kept.

    Raises:
        ConfigError: every mistake in groups, choices and top-level keys; with such a mistake, also every other one.
    """
    folders = folders_of(config_dir)
    line = understand(overrides, config_name, folders)
    if line.errors:
        _report_all(line, config_name, folders)
    if line.has_default_scale:
        _say_scale()
    cfg, choices = _compose(config_name, line.overrides, folders, with_hydra=with_hydra)
    return Invocation(
        cfg=cfg,
        overrides=list(overrides),
        registered=registered_targets(folders),
        config_dir=config_dir,
        choices=choices,
    )


@cache
def _say_scale() -> None:
    """Once a process, however many stages are composed."""
    sys.stderr.write("scale=paper, the published size; scale=shapes is the laptop twin of any recipe\n")


def _compose(
    config_name: str, overrides: list[str], folders: list[Path], *, with_hydra: bool = False
) -> tuple[DictConfig, dict[str, str]]:
    """The configuration, and the choice of each group."""
    resolvers.register()
    with hydra.initialize_config_dir(str(folders[0]), version_base="1.3"):
        cfg = hydra.compose(config_name, [search_path(folders), *overrides], return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    if not with_hydra:
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg, {group: choice for group, choice in choices.items() if choice and group.isidentifier()}


def _report_all(line: CommandLine, config_name: str, folders: list[Path]) -> None:
    """Raises the mistakes of the command line, with those of the rest of it when there is a rest."""
    if config_name in RUNS and any(text.startswith("++") and "." in text for text in line.overrides):
        try:
            cfg, _ = _compose(config_name, line.overrides, folders)
        except (HydraException, OmegaConfBaseException):
            raise ConfigError.collect(line.errors) from None
        check(cfg, registered_targets(folders), skip=RUNS[config_name], earlier=line.errors)
    raise ConfigError.collect(line.errors)


def _launch(
    body: Callable[[Invocation], None],
    config_name: str,
    module: str,
    args: list[str],
    sweep: Callable[[Multirun], int] | None,
) -> None:
    parsed = get_args_parser().parse_intermixed_args(args)
    if parsed.multirun and (parsed.cfg or parsed.info):
        shown = "--cfg" if parsed.cfg else "--info"
        raise ConfigError(f"-m with {shown}", expected="one of them", where="command line", fix="leave out -m")
    resumes = any(text.lstrip("+").startswith("sweep.resume=") for text in parsed.overrides)
    if parsed.help:
        print(help_text(module, config_name, folders_of(parsed.config_dir)))
    elif sweep and (parsed.multirun or (resumes and not (parsed.cfg or parsed.info))):
        asked = Multirun(
            module=module, config_name=config_name, overrides=parsed.overrides, config_dir=parsed.config_dir
        )
        _stop("", sweep(asked))
    elif parsed.cfg == "job":
        print(_shown(parsed, compose(config_name, parsed.overrides, parsed.config_dir).cfg))
    elif parsed.cfg or parsed.info or parsed.hydra_help or parsed.multirun or parsed.shell_completion:
        _hand_to_hydra(parsed, config_name, module, args)
    else:
        body(compose(config_name, parsed.overrides, parsed.config_dir))


def _shown(parsed: argparse.Namespace, cfg: DictConfig) -> str:
    node = OmegaConf.select(cfg, parsed.package) if parsed.package else cfg
    return OmegaConf.to_yaml(node, resolve=parsed.resolve).rstrip()


def _hand_to_hydra(parsed: argparse.Namespace, config_name: str, module: str, args: list[str]) -> None:
    line = understand(parsed.overrides, config_name, folders_of(parsed.config_dir))
    if line.errors:
        raise ConfigError.collect(line.errors)
    resolvers.register()
    flags = [arg for arg in args if arg not in parsed.overrides]
    failed: list[str] = []
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    with tempfile.TemporaryDirectory() as scratch:  # Hydra's record of the sweep would hold every override as typed
        sys.argv = [module, *flags, *_QUIET, f"hydra.sweep.dir={scratch}", *line.overrides]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(
                lambda cfg: _job(module, flags, failed)
            )()
        finally:
            sys.argv = before[0]
            os.environ.pop("HYDRA_FULL_ERROR")
            os.environ |= {"HYDRA_FULL_ERROR": before[1]} if before[1] is not None else {}
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
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    done = subprocess.run([sys.executable, "-m", *module.split(), *own, *overrides], check=False, env=environment)
    if done.returncode in (130, -2):
        raise KeyboardInterrupt
    if done.returncode:
        failed.append(f"{' '.join(overrides)} (exit code {done.returncode})")


def _stop(message: str, code: int) -> None:
    if message:
        sys.stderr.write(f"{message}\n")
    raise SystemExit(code)
