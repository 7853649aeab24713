"""From YAML and the command line to checked objects, through one door. Nothing here imports torch."""

from mmexp.config import resolvers
from mmexp.config.check import Checked, check, check_besides, check_own, load_run_config, resolve
from mmexp.config.cli import Invocation, compose, launch
from mmexp.config.commands import (
    ChatConfig,
    CompareConfig,
    DataCaptionConfig,
    DataCheckConfig,
    DataConvertConfig,
    DataFetchConfig,
    DoctorConfig,
    EvaluateConfig,
    PreviewConfig,
)
from mmexp.config.inspecting import InspectConfig
from mmexp.config.instantiate import instantiate, registered_targets
from mmexp.config.multirun import SWEEP_NAME, Multirun, SweepConfig
from mmexp.config.overrides import understand
from mmexp.config.paths import conf_dir, folders_of, parts_dir, search_path
from mmexp.config.redact import localize, redact, redact_overrides, redact_text
from mmexp.config.spine import RunConfig, StageConfig, own_keys

__all__ = [
    "SWEEP_NAME",
    "ChatConfig",
    "Checked",
    "CompareConfig",
    "DataCaptionConfig",
    "DataCheckConfig",
    "DataConvertConfig",
    "DataFetchConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "InspectConfig",
    "Invocation",
    "Multirun",
    "PreviewConfig",
    "RunConfig",
    "StageConfig",
    "SweepConfig",
    "check",
    "check_besides",
    "check_own",
    "compose",
    "conf_dir",
    "folders_of",
    "instantiate",
    "launch",
    "load_run_config",
    "localize",
    "own_keys",
    "parts_dir",
    "redact",
    "redact_overrides",
    "redact_text",
    "registered_targets",
    "resolve",
    "resolvers",
    "search_path",
    "understand",
]
