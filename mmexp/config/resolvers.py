"""The interpolations that `conf/` may use besides OmegaConf's own. They give names and paths, never numbers."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from mmexp.config.paths import parts_dir


def model_path(hub_id: str, models: str | None = None) -> str:
    """`${mmexp_model:owner/name,${paths.models}}`: `<models>/owner/name` if it is there, else the hub id.

    A file of weights that no hub has is given by its name alone, and found as `<models>/name`.
    """
    place = Path(models).expanduser() / hub_id if models else None
    return str(place) if place and place.exists() else hub_id


def first_given(value: str | None, otherwise: str) -> str:
    """`${mmexp_first:${stage.init_from},...}`: a setting, or something else where it is null."""
    return otherwise if value is None else value


def register() -> None:
    """Makes the interpolations known to OmegaConf; may be called again."""
    OmegaConf.register_new_resolver("mmexp_parts", lambda: str(parts_dir()), replace=True)
    OmegaConf.register_new_resolver("mmexp_model", model_path, replace=True)
    OmegaConf.register_new_resolver("mmexp_first", first_given, replace=True)
