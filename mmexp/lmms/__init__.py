"""A finished run as a model of lmms-eval: `python -m lmms_eval --model mmexp --model_args run=DIR --tasks pope`.

lmms-eval finds it by the entry point `lmms_eval.models`; nothing else imports this room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """What lmms-eval asks the entry point for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mmexp", chat_class_path="mmexp.lmms.model.RunModel")
