"""Measures the foundation against the plain thing in the same run, and prints JSON.

python scripts/bench/foundation.py [--hidden 512] [--layers 8] [--device cpu] [--repeats 5]

- tokenizer: MB of text per second and core, against sentencepiece's bare `encode`
- tower: features of one layer, against the whole CLIPVisionModel
- forward: image and text, against bare tower plus bare LLM on as many positions; text, against the bare LLM
- load: load_pretrained_model, against reading the same bytes with safetensors
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model import checkpoint as files
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import load_tokenizer

PROJECT = Path(__file__).resolve().parents[2]
TOKENIZER = PROJECT / "tests" / "data" / "checkpoints" / "llava-tiny-v1.5"
IMAGE_SIZE, PATCH_SIZE = 224, 14


def compare(ours: Callable[[], Any], plain: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Time two functions in turn; medians in seconds and their ratio (below 1: ours is faster)."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    ours(), plain()  # warm up
    for _ in range(repeats):
        for name, function in (("ours", ours), ("plain", plain)):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{k: round(v, 6) for k, v in medians.items()},
        "ratio": round(medians["ours"] / medians["plain"], 3),
    }


def bench_tokenizer(repeats: int) -> dict[str, float]:
    """Encode dialogs of about 1 kB, one by one as a data loader does."""
    tokenizer = load_tokenizer(str(TOKENIZER))
    turn = (
        "USER: What is the colour of the cat that sleeps near the door? ASSISTANT: It is white and grey.</s>"
    )
    texts = [f"{turn} {number} " + turn * 9 for number in range(300)]
    size = sum(len(text.encode()) for text in texts) / 1e6

    def ours() -> None:
        for text in texts:
            tokenizer(text)

    def plain() -> None:
        for text in texts:
            tokenizer.sp_model.encode(text)

    result = compare(ours, plain, repeats)
    return {**result, "MB_per_second": round(size / result["ours"], 2)}


def make_model(folder: Path, hidden: int, layers: int) -> LlavaLlamaForCausalLM:
    """Build a random LLaVA with a random tower, and save the tower to `folder`/tower."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=8,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
    )  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    config = LlavaConfig(
        vocab_size=8000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, mm_vision_tower=str(folder / "tower"), mm_hidden_size=hidden,
        mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2, mm_use_im_patch_token=False,
    )  # fmt: skip
    model = LlavaLlamaForCausalLM(config).eval()
    model.get_vision_tower().load_model()
    return model


def bench_model(model: LlavaLlamaForCausalLM, device: str, repeats: int) -> dict[str, Any]:
    """Compare the tower's features and whole forwards with the bare models."""
    model = model.to(device)
    tower = model.get_vision_tower()
    clip, llm = tower.vision_tower.vision_model, LlamaForCausalLM(model.config).to(device).eval()
    images = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    text = torch.randint(3, 8000, (1, 128), device=device)
    ids = torch.cat([text[:, :20], torch.tensor([[IMAGE_TOKEN_INDEX]], device=device), text[:, 20:]], 1)
    positions = torch.randn(1, 128 + tower.num_patches, model.config.hidden_size, device=device)

    def bare() -> None:
        clip(images, output_hidden_states=True)
        llm(inputs_embeds=positions)

    with torch.inference_mode():
        return {
            "tower": compare(lambda: tower(images), lambda: clip(images, output_hidden_states=True), repeats),
            "forward_image": compare(lambda: model(input_ids=ids, images=images), bare, repeats),
            "forward_text": compare(lambda: model(input_ids=text), lambda: llm(input_ids=text), repeats),
        }


def bench_load(model: LlavaLlamaForCausalLM, folder: Path, repeats: int) -> dict[str, float]:
    """Compare loading a whole checkpoint with reading its bytes."""
    path = folder / "model"
    model.resize_token_embeddings(len(load_tokenizer(str(TOKENIZER))), mean_resizing=False)
    model.save_pretrained(path)
    load_tokenizer(str(TOKENIZER)).save_pretrained(path)

    def read() -> None:
        files.load_weights(path)
        files.load_weights(folder / "tower")

    load = lambda: load_pretrained_model(str(path), None, "bench", device="cpu", dtype=torch.float32)  # noqa: E731
    return compare(load, read, repeats)


def main() -> None:
    """Run all parts and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=512, help="width of the random models")
    parser.add_argument("--layers", type=int, default=8, help="layers of the random tower and LLM")
    parser.add_argument("--device", default="cpu", help="where the models run")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each function")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder, args.hidden, args.layers)
        result: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **vars(args),
        }
        result["tokenizer"] = bench_tokenizer(args.repeats)
        result.update(bench_model(model, args.device, args.repeats))
        result["load"] = bench_load(model.to("cpu"), folder, args.repeats)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
