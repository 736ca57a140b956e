"""Makes checkpoint folders of every layout for the loader's tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import CheckpointError, load_weights, save_tensors

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
VOCABULARY = {"llama": 1000, "mistral": 1000, "mpt": 600}
TOKENIZERS = {"llama": "vicuna-tiny", "mistral": "vicuna-tiny", "mpt": "llava-tiny-mpt"}
STEM = {"llama": "model.", "mistral": "model.", "mpt": "transformer."}


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json."""
    return json.loads((folder / "config.json").read_text())


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; None removes one."""
    content = {**read_config(folder), **fields}
    kept = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def drop_weights(folder: Path) -> None:
    """Remove every weight file."""
    for file in [*folder.glob("*.bin"), *folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str) -> Path:
    """Replace the weight files by one file `name`, after `change` edited the dict of weights."""
    weights = load_weights(folder)
    change(weights)
    drop_weights(folder)
    save_tensors(weights, folder / name)
    return folder


def shard(folder: Path, pattern: str, shards: int = 3) -> Path:
    """Split the weights over files `pattern`.format(i, n) with an index."""
    weights = load_weights(folder)
    drop_weights(folder)
    names = list(weights)
    places = {name: pattern.format(i * shards // len(names) + 1, shards) for i, name in enumerate(names)}
    for file in set(places.values()):
        save_tensors({n: weights[n] for n in names if places[n] == file}, folder / file)
    stem = "model.safetensors" if pattern.endswith("safetensors") else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def add_tokenizer(folder: Path, family: str, checkpoints: Path) -> None:
    """Copy the family's tokenizer into the folder."""
    for name in TOKENIZER_FILES:
        source = checkpoints / TOKENIZERS[family] / name
        if source.exists():
            shutil.copy(source, folder / name)


def text_base(family: str, folder: Path, checkpoints: Path, seed: int = 1) -> Path:
    """Write a text model of the family (transformers' own class) with a tokenizer."""
    llava = tiny.llava_model(family, checkpoints / "tiny-clip", seed, **base_fields(family))
    tiny.bare_model(llava).save_pretrained(folder)
    add_tokenizer(folder, family, checkpoints)
    return folder


def base_fields(family: str) -> dict[str, Any]:
    """Config fields of models that go with `text_base` and the recorded tower."""
    return {"vocab_size": VOCABULARY[family], "mm_hidden_size": 32}


def whole(family: str, folder: Path, checkpoints: Path, **fields: Any) -> Path:
    """Write a whole LLaVA of the family, in float32, with a tokenizer."""
    model = tiny.llava_model(family, checkpoints / "tiny-clip", 1, **{**base_fields(family), **fields})
    model.save_pretrained(folder)
    add_tokenizer(folder, family, checkpoints)
    return folder


def projector(family: str, folder: Path, checkpoints: Path, base: Path | None = None, **fields: Any) -> Path:
    """Write a stage-1 folder (config.json and mm_projector.bin), trained on `base`."""
    model = tiny.llava_model(family, checkpoints / "tiny-clip", 2, **{**base_fields(family), **fields})
    model.config.tune_mm_mlp_adapter = True
    model.config.save_pretrained(folder)
    if base is not None:
        edit_config(folder, _name_or_path=str(base))
    wanted = ("mm_projector", "image_newline")
    kept = {name: v for name, v in model.state_dict().items() if any(part in name for part in wanted)}
    save_tensors(kept, folder / "mm_projector.bin")
    return folder


def lora(family: str, folder: Path, base: Path, checkpoints: Path, *, safe: bool = True) -> dict[str, Any]:
    """Write a LoRA folder on `base` as the reference does; returns the weights that merging must give."""
    from peft import LoraConfig, get_peft_model

    model = tiny.llava_model(family, checkpoints / "tiny-clip", 3, **base_fields(family))
    model.load_state_dict(load_weights(base), strict=False)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not any(part in name for part in ("mm_projector", "vision_tower", "lm_head"))
    ]
    targets = sorted({name.rsplit(".", 1)[1] for name in names})
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, exclude_modules=".*vision_tower.*", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    wrapped.save_pretrained(folder, safe_serialization=safe)
    adapter = json.loads((folder / "adapter_config.json").read_text())
    adapter.pop("exclude_modules")  # peft 0.7, which the reference pins, has no such field
    adapter["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    model.config.save_pretrained(folder)
    rest = {name: v for name, v in wrapped.named_parameters() if "mm_projector" in name}
    save_tensors({name: v.detach() for name, v in rest.items()}, folder / "non_lora_trainables.bin")
    return {name: v.clone() for name, v in wrapped.merge_and_unload().state_dict().items()}


def refuse(path: Path, *parts: Any, base: Path | None = None, error: type = CheckpointError) -> None:
    """Assert that loading `path` fails with one sentence that holds every one of `parts`."""
    with pytest.raises(error) as caught:
        load_pretrained_model(str(path), base and str(base), path.name, device="cpu")
    message = str(caught.value)
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
    assert "\n" not in message
    assert len(message) < 700
