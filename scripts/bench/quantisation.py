"""Measure a random LLaVA in 32, 16, 8 and 4 bits, and with a compiled step: size, closeness, speed; JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from models import TOKENIZER, clock, make_model

from llava.inference.compiled import CompiledDecoder
from llava.inference.decoder import Decoder
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import load_tokenizer

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "8 bit": {"dtype": "bfloat16", "load_8bit": True},
    "4 bit": {"dtype": "bfloat16", "load_4bit": True},
}


def megabytes(model: Any) -> dict[str, float]:
    """Return the size of the LLM's blocks and of the rest, bitsandbytes' scales included."""
    sizes = {"blocks": 0, "rest": 0}
    for name, module in model.named_modules():
        part = "blocks" if ".layers." in name and "vision_tower" not in name else "rest"
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            tensors += [state.absmax]
            tensors += [state.state2.absmax] if getattr(state, "state2", None) is not None else []
        scales = getattr(getattr(module, "state", None), "SCB", None)
        scales = getattr(getattr(module, "weight", None), "SCB", None) if scales is None else scales
        tensors += [scales] if scales is not None else []
        sizes[part] += sum(one.numel() * one.element_size() for one in tensors)
    return {part: round(size / 2**20, 2) for part, size in sizes.items()}


def token_ms(decoder: Decoder, prompt: list[int], n_tokens: int, device: str) -> float:
    """Return the median time of a step, in milliseconds."""
    logits = decoder.prefill(prompt)
    times = []
    for _ in range(n_tokens):
        token = int(logits.argmax())
        start = clock(device)
        logits = decoder.step(token)
        times.append(clock(device) - start)
    return round(1000 * statistics.median(times), 3)


@torch.no_grad()
def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Load the model in each format; returns size, cosine of the logits with float32, and time of a step."""
    prompt = torch.randint(3, 900, (args.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([prompt], device=args.device)
    results: dict[str, Any] = {}
    exact = None
    for name, kwargs in FORMATS.items():
        model = load_pretrained_model(str(folder), None, "bench", device=args.device, **kwargs)[1]
        size = megabytes(model)
        logits = model(input_ids=ids).logits[0].float()  # (n, vocab)
        exact = logits if exact is None else exact
        cosine = torch.nn.functional.cosine_similarity(logits, exact, dim=-1).mean().item()
        step = token_ms(Decoder(model), prompt, args.tokens, args.device)
        results[name] = {"megabytes": size, "cosine": round(cosine, 4), "token_ms": step}
        if name == "float32" and args.compile:
            decoder = CompiledDecoder(model)
            token_ms(decoder, prompt, 3, args.device)
            results["float32, compiled"] = {"token_ms": token_ms(decoder, prompt, args.tokens, args.device)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of the answer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also compile the step (float32)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder, args.hidden, args.layers)
        tokenizer = load_tokenizer(str(TOKENIZER))
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        print(json.dumps(measure(folder / "model", args), indent=2))


if __name__ == "__main__":
    main()
