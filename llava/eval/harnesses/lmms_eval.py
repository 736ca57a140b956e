"""The model `llava_batched` of lmms-eval, found through its entry-point group `lmms_eval.models`.

lmms-eval is imported when it asks for the manifest, or for the class, which is built then; not before.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from llava.eval.harnesses.answering import HarnessModel

MODEL_ID = "llava_batched"
CLASS_NAME = "LlavaBatched"


def manifest() -> object:
    """Return what lmms-eval registers: the name of the model, and where its class is."""
    registry = importlib.import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(model_id=MODEL_ID, simple_class_path=f"{__name__}.{CLASS_NAME}")


@functools.cache
def _model_class() -> type:
    """Return the class that lmms-eval makes: its own `lmms` with the answers of this library."""
    base: Any = importlib.import_module("lmms_eval.api.model").lmms
    return type(CLASS_NAME, (HarnessModel, base), {"__module__": __name__, "is_simple": True})


def __getattr__(name: str) -> Any:
    if name != CLASS_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _model_class()
