"""What training writes, the loader loads: kinds of checkpoints x ways of training x flags of the scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train, sample_image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights
from llava.model.conversion.to_hf import to_hf
from llava.model.tools.extract import merge_lora
from llava.model.tools.inspection import inspect_checkpoint

# base -> what its recipe names beside the shared flags; no merge type, no aspect ratio of v1.6
BASES = {
    "vicuna-tiny": "--version v1 --mm_projector_type mlp2x_gelu --image_aspect_ratio pad",
    "llava-tiny-v0": "--version v1",
    "llava-tiny-v1.5": "--version v1 --mm_projector_type mlp2x_gelu --image_aspect_ratio pad",
    "llava-tiny-v1.5-st": "--version v1 --mm_projector_type mlp2x_gelu --image_aspect_ratio pad",
    "llava-tiny-v1.6": "--version v1 --mm_projector_type mlp2x_gelu --image_aspect_ratio pad",
    "llava-tiny-v1.6-mistral": "--version mistral_instruct --mm_projector_type mlp2x_gelu",
    "llava-tiny-mpt": "--version mpt",
}
SCRIPTS = "--mm_use_im_start_end False --mm_use_im_patch_token False"
TOKENS = "--mm_use_im_start_end True --mm_use_im_patch_token False"
WAYS = {
    "full": "--learning_rate 1e-2",
    "lora": "--lora_enable True --lora_r 8 --lora_alpha 16 --learning_rate 1e-1 --mm_projector_lr 1e-2",
    "qlora": "--bits 4 --lora_enable True --lora_r 8 --lora_alpha 16 --learning_rate 1e-1",
    "projector": "--tune_mm_mlp_adapter True --learning_rate 1e-1",
}


def train_one_step(base: str, way: str, more: str, checkpoints: Path, data: Path, out: Path) -> Any:
    """Train one step on records with and without images; returns the trained model, in eval mode."""
    file = "pretrain" if way == "projector" else "finetune"
    recipe = f"{more} {WAYS[way]} --data_path {{data}}/{file}.json --max_steps 1 --save_strategy no"
    return run_train(flags(checkpoints, data, out, recipe, base=base)).trainer.model.eval()


def logits_of(model: Any, processor: Any, tokens: int) -> torch.Tensor:
    """Return the logits (1, L, tokens) of a prompt with an image and the last tokens of a vocabulary."""
    model = getattr(model, "get_base_model", lambda: model)()  # an adapter's wrapper knows no images
    image = sample_image(90, 40, 3)
    pixels = process_images([image], processor, model.config)
    ids = torch.tensor([[1, 11, IMAGE_TOKEN_INDEX, 12, tokens - 2, tokens - 1]])
    with torch.no_grad():
        return model(input_ids=ids, images=pixels, image_sizes=[image.size]).logits.float()[..., :tokens]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", BASES)
def test_folder_is_loaded_as_it_was_trained(base, way, checkpoints, training_data, tmp_path) -> None:
    out = tmp_path / "llava-out"
    trained = train_one_step(base, way, f"{BASES[base]} {SCRIPTS}", checkpoints, training_data, out)
    check_folder(trained, out, base, way, checkpoints)


def check_folder(trained: Any, out: Path, base: str, way: str, checkpoints: Path) -> None:
    """Assert that a folder is inspected, loaded and merged, and gives the trained model's logits."""
    needs_base = str(checkpoints / base) if way != "full" else None
    report = inspect_checkpoint(str(out), needs_base)
    assert report.can_chat, report.problems
    (tokenizer, loaded, processor, _), (_, again, _, _) = (
        load_pretrained_model(str(out), needs_base, out.name, device="cpu", dtype="float32") for _ in range(2)
    )
    logits = logits_of(loaded, processor, len(tokenizer))
    assert torch.equal(logits, logits_of(again, processor, len(tokenizer)))  # nothing is random
    if way != "qlora":  # its base was held in 4 bits while it trained
        expected = logits_of(trained, processor, len(tokenizer))
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max() < 2e-4
    config = json.loads((out / "config.json").read_text())
    assert ("unpad" in (config.get("mm_patch_merge_type") or "")) == (
        getattr(loaded.get_model(), "image_newline", None) is not None
    )


# flags that name what the checkpoint has otherwise, and tokens that it lacks
CROSSINGS = {
    "merge type flat on v1.6": ("llava-tiny-v1.6", "--mm_patch_merge_type flat --image_aspect_ratio pad"),
    "tiles on v1.5": (
        "llava-tiny-v1.5",
        "--mm_patch_merge_type spatial_unpad --image_aspect_ratio anyres "
        "--image_grid_pinpoints [[56,112],[112,56],[112,112]]",
    ),
    "v1.6 as it is": ("llava-tiny-v1.6", ""),
    "start and end tokens on a text model": ("vicuna-tiny", TOKENS),
    "start and end tokens on v1.5": ("llava-tiny-v1.5", TOKENS),
    "patch token on a text model": ("vicuna-tiny", "--mm_use_im_patch_token True"),
    "version v0 adds [PAD]": ("vicuna-tiny", "--version v0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("name", CROSSINGS)
def test_flags_and_weights_agree(name, way, checkpoints, training_data, tmp_path) -> None:
    base, more = CROSSINGS[name]
    out = tmp_path / "llava-out"
    version = "" if "--version" in more else "--version v1"
    more = f"{version} --mm_projector_type mlp2x_gelu {more}"
    trained = train_one_step(base, way, more, checkpoints, training_data, out)
    check_folder(trained, out, base, way, checkpoints)


@pytest.mark.slow
def test_an_adapter_with_new_tokens_is_exported(checkpoints, training_data, tmp_path) -> None:
    out, base = tmp_path / "llava-out", checkpoints / "vicuna-tiny"
    more = f"{BASES['vicuna-tiny']} {TOKENS}"
    trained = train_one_step("vicuna-tiny", "lora", more, checkpoints, training_data, out)
    stored = [name for name in load_weights(out / "non_lora_trainables.bin") if "new_token_rows" in name]
    assert stored == ["new_token_rows.input", "new_token_rows.output"]
    head = trained.get_output_embeddings().weight[-2:]
    merge_lora(str(out), str(base), str(tmp_path / "merged" / "llava"), out.name)
    merged = load_weights(tmp_path / "merged" / "llava")
    assert torch.allclose(merged["lm_head.weight"][-2:].float(), head, atol=1e-3)
    report = to_hf(str(out), str(tmp_path / "hf"), base=str(base))
    assert report is not None and report.passed
