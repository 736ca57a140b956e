"""Takes parts out of checkpoints, and merges adapters into them."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.checkpoints.saving import repair_generation_config
from llava.model.checkpoints.writing import (
    explained_write,
    refuse_adapter_in,
    refuse_input_as_target,
    refuse_unwritable,
    whole_folder,
)
from llava.model.plan import look_into

logger = logging.getLogger(__name__)


def extract_projector(model_path: str, output: str) -> list[str]:
    """Write the projector's weights of a LLaVA (whole, LoRA or stage 1) to the file `output`; returns their
    names.

    Reads only the files that hold them. Raises CheckpointError when there are none.
    """
    refuse_unwritable(output, "--output", folder=False)
    kind = look_into(model_path).kind
    place = Path(output)
    sources = files.weight_files(model_path)
    if kind in ("lora", "projector"):
        names = (files.NON_LORA_FILE, files.PROJECTOR_FILE)
        sources = [file for name in names if (file := files.find_file(model_path, name))]
    if any(place.resolve() == file.resolve() for file in sources):
        raise CheckpointError(
            f"--output {output} is what the projector is read from; give the name of a new file, "
            "e.g. mm_projector.bin."
        )
    wanted = {}
    for file in sources:
        wanted.update(files.read_tensors(file, only=files.PROJECTOR_NAMES))
    if not wanted:
        name = files.PROJECTOR_NAMES[0]
        raise CheckpointError(f"{model_path} holds no projector (no weight named {name}*).")
    wanted = files.strip_adapter_prefix(wanted)
    with explained_write(output, "--output"):
        files.save_tensors(wanted, output)
    return sorted(wanted)


def merge_lora(
    model_path: str, model_base: str | None, save_path: str, model_name: str, *, dtype: str = "float16"
) -> None:
    """Merge the adapter in `model_path` into its base; write the whole model and tokenizer to `save_path`.

    dtype: of the merged weights; "auto" is that of the adapter's config. Raises CheckpointError when
    `model_path` is no adapter, or `save_path` is one of the folders that are read.
    """
    refuse_unwritable(save_path, "--save-model-path")
    found = look_into(model_path)
    if found.kind not in ("lora", "text_lora"):
        raise CheckpointError(
            f"{model_path} has no adapter ({files.ADAPTER_CONFIG_FILE}), so there is nothing to merge; give "
            f"the folder that LoRA training wrote."
        )
    refuse_input_as_target(save_path, (model_path, model_base, found.recorded_base))
    refuse_adapter_in(save_path, "--save-model-path")
    tokenizer, model, _, _ = load_pretrained_model(
        model_path, model_base, model_name, device_map="cpu", dtype=dtype
    )
    if told := rounding_cost(stored_dtypes(model_path, model_base or found.recorded_base), model.dtype):
        logger.warning("%s", told)
    repair_generation_config(model)
    with whole_folder(save_path, "--save-model-path") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def stored_dtypes(*paths: str | None) -> set[torch.dtype]:
    """Return the floating dtypes of the weights in the folders of an adapter and its base."""
    dtypes: set[torch.dtype] = set()
    for path in filter(None, paths):
        names = [files.find_file(path, name) for name in (*files.ADAPTER_FILES, files.NON_LORA_FILE)]
        for file in [*files.weight_files(path), *filter(None, names)]:
            dtypes |= {value.dtype for value in files.read_tensors(file, shapes_only=True).values()}
    return {dtype for dtype in dtypes if dtype.is_floating_point}


def rounding_cost(stored: set[torch.dtype], dtype: torch.dtype) -> str | None:
    """Say what merging to a dtype loses of weights that are stored in finer or wider ones; None for nothing.

    The relative rounding error of a format is half its machine epsilon.
    """
    target = torch.finfo(dtype)
    finer = [one for one in stored if torch.finfo(one).eps < target.eps]
    wider = [one for one in stored if torch.finfo(one).max > target.max]
    if not finer and not wider:
        return None
    names = ", ".join(sorted(str(one).removeprefix("torch.") for one in {*finer, *wider}))
    name = str(dtype).removeprefix("torch.")
    lost = f"each weight changes by up to {target.eps / 2:.1e} of its value" if finer else "digits are kept"
    limit = f", and what lies beyond {target.max:.3g} would become infinite" if wider else ""
    widest = "float32" if finer else names
    return f"weights stored as {names} are merged to {name}: {lost}{limit}; --dtype {widest} keeps them"
