"""What the benchmarks share: timing two functions in turn, and a random LLaVA with its tower."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints import files
from llava.model.tokenizer import load_tokenizer

PROJECT = Path(__file__).resolve().parents[2]
TOKENIZER = PROJECT / "tests" / "data" / "checkpoints" / "llava-tiny-v1.5"
IMAGE_SIZE, PATCH_SIZE = 224, 14


def clock(device: str) -> float:
    """Return seconds: of the processor on a CPU, so that other load does not count, else wall-clock time."""
    if device == "cpu":
        return time.process_time()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(
    ours: Callable[[], Any], plain: Callable[[], Any], repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """Time two functions in turn; medians in seconds and their ratio (below 1: ours is faster)."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    ours(), plain()  # warm up
    for _ in range(repeats):
        for name, function in (("ours", ours), ("plain", plain)):
            start = clock(device)
            function()
            seconds[name].append(clock(device) - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{name: round(value, 6) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["plain"], 3),
    }


def make_model(
    folder: Path, hidden: int, layers: int, vocabulary: int = 8000, **settings: Any
) -> LlavaLlamaForCausalLM:
    """Build a random LLaVA with a random tower, and save the tower to `folder`/tower."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=8,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
    )  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    config = LlavaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, mm_vision_tower=str(folder / "tower"), mm_hidden_size=hidden,
        mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2, mm_use_im_patch_token=False, **settings,
    )  # fmt: skip
    model = LlavaLlamaForCausalLM(config).eval()
    model.get_vision_tower().load_model()
    return model


def bench_load(model: LlavaLlamaForCausalLM, folder: Path, repeats: int) -> dict[str, float]:
    """Compare loading a whole checkpoint with reading its bytes; folder holds the tower."""
    path = folder / "model"
    model.resize_token_embeddings(len(load_tokenizer(str(TOKENIZER))), mean_resizing=False)
    model.save_pretrained(path)
    load_tokenizer(str(TOKENIZER)).save_pretrained(path)

    def read() -> None:
        files.load_weights(path)
        files.load_weights(folder / "tower")

    def load() -> None:
        load_pretrained_model(str(path), None, "bench", device="cpu", dtype=torch.float32)

    return compare(load, read, repeats)
