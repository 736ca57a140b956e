"""Takes parts out of checkpoints, and merges adapters into them."""

from __future__ import annotations

from llava.model import checkpoint as files
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import CheckpointError


def extract_projector(model_path: str, output: str) -> list[str]:
    """Write the projector's weights of a whole checkpoint to the file `output`; returns their names.

    Reads only the shards that hold them. Raises CheckpointError when there are none.
    """
    wanted = {}
    for file in files.weight_files(model_path):
        wanted.update(files.read_tensors(file, only=files.PROJECTOR_NAMES))
    if not wanted:
        name = files.PROJECTOR_NAMES[0]
        raise CheckpointError(f"{model_path} holds no projector (no weight named {name}*).")
    files.save_tensors(wanted, output)
    return sorted(wanted)


def merge_lora(model_path: str, model_base: str | None, save_path: str, model_name: str) -> None:
    """Merge the adapter in `model_path` into its base; write the whole model and tokenizer to `save_path`."""
    tokenizer, model, _, _ = load_pretrained_model(model_path, model_base, model_name, device_map="cpu")
    with files.whole_folder(save_path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
