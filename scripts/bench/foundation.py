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
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from models import IMAGE_SIZE, TOKENIZER, bench_load, compare, make_model
from transformers import LlamaForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaLlamaForCausalLM
from llava.model.tokenizer import load_tokenizer


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
