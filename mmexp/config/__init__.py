"""From YAML and the command line to checked objects, through one door. Nothing here imports torch."""

from mmexp.config.check import Checked, check, load_run_config
from mmexp.config.cli import Invocation, compose, launch
from mmexp.config.instantiate import instantiate, registered_targets
from mmexp.config.paths import conf_dir, parts_dir
from mmexp.config.redact import redact, redact_overrides
from mmexp.config.spine import RunConfig, StageConfig

__all__ = [
    "Checked",
    "Invocation",
    "RunConfig",
    "StageConfig",
    "check",
    "compose",
    "conf_dir",
    "instantiate",
    "launch",
    "load_run_config",
    "parts_dir",
    "redact",
    "redact_overrides",
    "registered_targets",
]
