"""generation_config.json: read before transformers does, which passes over a broken one."""

from __future__ import annotations

from llava.model.checkpoints.errors import CheckpointError, explained, shown
from llava.model.checkpoints.files import find_file, read_json

GENERATION_FILE = "generation_config.json"


def check_generation_config(path: str) -> None:
    """Raise CheckpointError for a `generation_config.json` that cannot be read.

    transformers would go on without it, with other end tokens and settings than the checkpoint's.
    """
    from transformers import GenerationConfig

    file = find_file(path, GENERATION_FILE)
    if file is None:
        return
    content = read_json(file)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = content.get(name)
        ids = value if isinstance(value, list) else [value]
        if not all(one is None or (isinstance(one, int) and not isinstance(one, bool)) for one in ids):
            raise CheckpointError(f"{file} has {name} {shown(value)}; expected a token id or a list of them.")
    with explained(path, GENERATION_FILE):
        GenerationConfig.from_dict(content)
