"""Measures a training step with --packing and without, and the loss on labels only, and prints JSON.

python scripts/bench/training.py [--hidden 256] [--layers 4] [--batch 8] [--attention sdpa] [--device cpu]

A step is forward and backward of a random LLaVA-1.5 (576 positions an image) on one batch. Lengths are drawn
like those of LLaVA-1.5's data: mostly one image, short answers beside long dialogs, some texts.

- random: a batch as it comes; grouped: one of like lengths, as --group_by_modality_length makes them
- packed: seconds of the packed step, of the padded step in the same process, and their ratio (below 1:
  packing is faster); padding: the part of the padded batch that is padding; the losses must agree
- profile (--profile): parts of one padded step by kind of operation, and nothing else
- labels_only: the step with logits on labelled positions, against logits on all positions
Seconds are those of the processor on a CPU, so that other load does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.train.setup.packing import use_packing

VOCABULARY = 32000
PATCHES = 576
Sizes = list[tuple[int, bool]]  # text tokens, whether there is an image


def draw_sizes(count: int, seed: int) -> Sizes:
    """Draw text lengths and images of samples."""
    order = random.Random(seed)
    found = []
    for _ in range(count):
        median = 90 if order.random() < 0.4 else 300  # a question of VQA, or a dialog
        found.append((min(1400, int(order.lognormvariate(0, 0.6) * median) + 20), order.random() < 0.94))
    return found


def grouped_sizes(batch: int, seed: int) -> Sizes:
    """Draw a batch whose samples were neighbours when 64 batches were sorted by length."""
    with_images = sorted(size for size in draw_sizes(64 * batch, seed) if size[1])
    start = len(with_images) // 2
    return with_images[start : start + batch]


def make_batch(sizes: Sizes, device: str) -> dict[str, Any]:
    """Make a padded batch; the second half of each text is labelled."""
    longest = max(length for length, _ in sizes)
    ids = torch.zeros(len(sizes), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, (length, has_image) in enumerate(sizes):
        ids[row, :length] = torch.randint(3, VOCABULARY, (length,))
        labels[row, length // 2 : length] = ids[row, length // 2 : length]
        if has_image:
            ids[row, 1] = IMAGE_TOKEN_INDEX
    batch = {"input_ids": ids, "labels": labels, "attention_mask": ids != 0}
    batch["images"] = torch.randn(len(sizes), 3, 336, 336)
    return {name: value.to(device) for name, value in batch.items()}


def make_model(folder: Path, args: argparse.Namespace) -> LlavaLlamaForCausalLM:
    """Build a random LLaVA with a small tower that is frozen."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        image_size=336, patch_size=14,
    )  # fmt: skip
    CLIPVisionModel(vision).save_pretrained(folder)
    config = LlavaConfig(
        vocab_size=VOCABULARY, hidden_size=args.hidden, intermediate_size=int(2.7 * args.hidden),
        num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64, mm_vision_tower=str(folder),
        mm_hidden_size=64, mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2,
        attn_implementation=args.attention, pad_token_id=0,
    )  # fmt: skip
    model = LlavaLlamaForCausalLM(config).train()
    model.get_vision_tower().load_model()
    model.config.use_cache = False
    return model.to(args.device, torch.bfloat16 if args.device == "cuda" else torch.float32)


def step(model: Any, batch: dict[str, Any]) -> float:
    """Run forward and backward; returns the loss."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach())


def compare(ours: Callable[[], float], plain: Callable[[], float], args: Any) -> dict[str, Any]:
    """Time two steps in turn: medians in seconds, their ratio, and how far their losses are apart."""
    on_gpu = args.device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    losses, memory = {}, {}
    for repeat in range(args.repeats + 1):  # the first warms up
        for name, function in (("ours", ours), ("plain", plain)):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = clock()
            losses[name] = function()
            if repeat:
                seconds[name].append(clock() - start)
            if on_gpu:
                memory[f"{name}_GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{name: round(value, 4) for name, value in medians.items()},
        **memory,
        "ratio": round(medians["ours"] / medians["plain"], 3),
        "loss_difference": abs(losses["ours"] - losses["plain"]),
    }


def bench_packing(model: Any, sizes: Sizes, args: argparse.Namespace) -> dict[str, Any]:
    """Compare a packed step with a padded one."""
    batch = make_batch(sizes, args.device)
    lengths = [length + (PATCHES - 1) * has_image for length, has_image in sizes]

    def packed() -> float:
        use_packing(model)
        return step(model, batch)

    def padded() -> float:
        model.packs_samples = False
        return step(model, batch)

    padding = 1 - sum(lengths) / (max(lengths) * len(lengths))
    result = {"lengths": lengths, "padding": round(padding, 3), **compare(packed, padded, args)}
    model.packs_samples = False
    return result


def bench_labels_only(model: Any, sizes: Sizes, args: argparse.Namespace) -> dict[str, Any]:
    """Compare logits where labels are with logits everywhere."""
    batch = make_batch(sizes, args.device)

    def run(only: bool) -> float:
        model.supervised_logits_only = only
        return step(model, batch)

    result = compare(lambda: run(True), lambda: run(False), args)
    model.supervised_logits_only = True
    return {"labels": int((batch["labels"] >= 0).sum()), **result}


GROUPS = {
    "attention": ("attention",),
    "matrix products": ("mm",),
    "softmax of the loss": ("log_softmax", "nll_loss"),
}


def profile_step(model: Any, sizes: Sizes, args: argparse.Namespace) -> dict[str, Any]:
    """Tell which kinds of operations one step spends its time on, as parts of the whole."""
    batch = make_batch(sizes, args.device)
    step(model, batch)  # warms up
    with torch.profiler.profile() as profiler:
        step(model, batch)
    field = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    spent: dict[str, float] = dict.fromkeys([*GROUPS, "other"], 0.0)
    for event in profiler.key_averages():
        found = (name for name, words in GROUPS.items() if any(word in event.key for word in words))
        spent[next(found, "other")] += getattr(event, field)
    total = sum(spent.values())
    return {
        "seconds": round(total / 1e6, 3),
        **{name: round(value / total, 3) for name, value in spent.items()},
    }


def main() -> None:
    """Run all parts and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=256, help="width of the LLM, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4, help="layers of the LLM")
    parser.add_argument("--batch", type=int, default=8, help="samples in a batch")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each step")
    parser.add_argument("--profile", action="store_true", help="only say what one step spends its time on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = make_model(Path(name), args)
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, **vars(args)}
    if args.profile:
        result["profile"] = profile_step(model, draw_sizes(args.batch, seed=1), args)
        json.dump(result, sys.stdout, indent=1)
        return print()
    result["packed_random"] = bench_packing(model, draw_sizes(args.batch, seed=1), args)
    result["packed_grouped"] = bench_packing(model, grouped_sizes(args.batch, seed=1), args)
    result["labels_only"] = bench_labels_only(model, draw_sizes(2, seed=1), args)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
