"""How a model's folder is written so that the reference and transformers 4.37 can read it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def repair_generation_config(model: Any) -> None:
    """Switch sampling on where a generation config sets sampling values without it.

    Vicuna's says do_sample=False with temperature 0.9, and transformers refuses to save such a config.
    """
    config = getattr(model, "generation_config", None)
    if config is None or config.do_sample:
        return
    if config.temperature not in (None, 1.0) or config.top_p not in (None, 1.0):
        logger.warning(
            "generation_config has temperature %s and top_p %s but do_sample=False; saved with "
            "do_sample=True",
            config.temperature,
            config.top_p,
        )
        config.do_sample = True


def save_whole_model(model: Any, save: Callable[..., None], folder: Any, kwargs: dict[str, Any]) -> None:
    """Call `save` (the `save_pretrained` of transformers) so that keys stay the reference's.

    `save_original_format=False`: the tower's in-memory names already are those on disk (VisionModelHolder),
    and the renaming that transformers would do, under ZeRO-3 twice, is left out.
    """
    repair_generation_config(model)
    kwargs.setdefault("save_original_format", False)
    save(folder, **kwargs)
