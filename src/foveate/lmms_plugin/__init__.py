"""A model for lmms-eval: any Hugging Face vision-language model, with fewer visual tokens.

lmms-eval finds `manifest` under its entry point group `lmms_eval.models`. The module beside this one imports lmms-eval,
and nothing else in foveate imports it.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return what lmms-eval registers: the name `foveate`, and the class that it imports when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="foveate", chat_class_path="foveate.lmms_plugin.model.Foveate")
