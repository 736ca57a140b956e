"""How a model's folder is written so that the reference and transformers 4.37 can read it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava._compat import engines_of_deepspeed_if_imported
from llava.atomic import let_others_read
from llava.protocols import CausalModel

logger = logging.getLogger(__name__)


# fields of a generation config that work only while sampling, or only with several beams, and the values that
# say nothing
SAMPLING_FIELDS = {
    "temperature": (None, 1.0),
    "top_p": (None, 1.0),
    "top_k": (None, 50),
    "min_p": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}
BEAM_FIELDS = {"early_stopping": (None, False), "length_penalty": (None, 1.0)}


def contradiction(config: object) -> str:
    """Say which fields of a generation config need another one that it does not set; "" if none do."""
    told = []
    if not getattr(config, "do_sample", None) and (found := _meaningful(config, SAMPLING_FIELDS)):
        told.append(f"{' and '.join(f'{name} {value}' for name, value in found.items())} but do_sample=False")
    if getattr(config, "num_beams", None) in (None, 1) and (found := _meaningful(config, BEAM_FIELDS)):
        told.append(f"{' and '.join(f'{name} {value}' for name, value in found.items())} but one beam")
    return "; ".join(told)


def _meaningful(config: object, fields: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    values = {name: getattr(config, name, None) for name in fields}
    return {name: value for name, value in values.items() if value not in fields[name]}


def repair_generation_config(model: CausalModel) -> None:
    """Make a model's generation config one that transformers agrees to save.

    Vicuna's says do_sample=False with temperature 0.9: sampling is switched on. Fields that need several
    beams are reset. What else is refused leaves only the token ids.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    if told := contradiction(config):
        if not config.do_sample and _meaningful(config, SAMPLING_FIELDS):
            config.do_sample = True
            told += "; saved with do_sample=True"
        if config.num_beams in (None, 1):
            for name, values in BEAM_FIELDS.items():
                setattr(config, name, values[0])
        logger.warning("generation_config has %s", told)
    try:
        config.validate(strict=True)
    except ValueError as error:
        logger.warning(
            "generation_config is not saved, but for its token ids: %s", " ".join(str(error).split())
        )
        ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = type(config)(**{name: id_ for name, id_ in ids.items() if id_ != -1})


def save_whole_model(
    model: CausalModel, save: Callable[..., None], folder: str | os.PathLike[str], kwargs: dict[str, Any]
) -> None:
    """Call `save` (the `save_pretrained` of transformers) so that keys stay the reference's.

    `save_original_format=False`: the tower's in-memory names already are those on disk (VisionModelHolder),
    and the renaming that transformers would do, under ZeRO-3 twice, is left out.
    """
    repair_generation_config(model)
    kwargs.setdefault("save_original_format", False)
    with engines_of_deepspeed_if_imported():
        save(folder, **kwargs)
    for file in Path(folder).glob("*.safetensors"):
        let_others_read(file)
