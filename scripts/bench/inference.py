"""Measures asking a model against the plain thing in the same run, and prints JSON.

python scripts/bench/inference.py [--hidden 512] [--layers 8] [--device cpu] [--repeats 5] [--checkpoint DIR]

- load: load_pretrained_model, against reading the same bytes with safetensors
- prefill: a prompt with an image through the Decoder, against bare tower plus bare LLM on as many positions
- decode: an answer's tokens through ChatSession, against the bare LLM's generate; ratio of tokens a second
- second_turn: another question about the image with the kept cache, against a session that has nothing
- batch: short answers at batch 8, against one by one, of a small model and of one with --hidden and --layers,
  with an image in each question and without; speedup of batch 8
- checkpoint: the same batch comparison with a real checkpoint (--checkpoint, --images: a folder of images)
Models are random. Seconds are those of the processor on a CPU, so that other load does not count.
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
from PIL import Image
from transformers import LlamaForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.inference import Assistant, ChatSession, Decoder, LoadedModel, SamplingParams, load
from llava.model.tokenizer import load_tokenizer

NEW_TOKENS, SHORT_ANSWER, QUESTIONS = 64, 8, 16
Result = dict[str, Any]


def make_assistant(folder: Path, hidden: int, layers: int, device: str) -> Assistant:
    """Return a random model that never ends an answer by itself, with a tokenizer of its size."""
    folder.mkdir()
    tokenizer = load_tokenizer(str(TOKENIZER))
    model = make_model(folder, hidden, layers, len(tokenizer), max_position_embeddings=4096)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0  # never the likeliest
    processor = model.get_vision_tower().image_processor
    return Assistant(LoadedModel(tokenizer, model.to(device), processor, 4096), conv_templates["llava_v1"])


def image_of(number: int) -> Image.Image:
    """Return one of many images."""
    return Image.linear_gradient("L").rotate(7 * number).resize((320, 240)).convert("RGB")


def bench_prefill(assistant: Assistant, repeats: int, device: str) -> Result:
    """Compare a prompt with an image to the bare models."""
    model = assistant.model
    llm = LlamaForCausalLM(model.config).to(device).eval()
    clip = model.get_vision_tower().vision_tower.vision_model
    text = torch.randint(300, len(assistant.tokenizer), (128,)).tolist()
    ids = [*text[:20], IMAGE_TOKEN_INDEX, *text[20:]]
    image = image_of(1)
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    n_patches = model.get_vision_tower().num_patches
    positions = torch.randn(1, 128 + n_patches, model.config.hidden_size, device=device)

    def bare() -> None:
        clip(pixels, output_hidden_states=True)
        llm(inputs_embeds=positions, use_cache=True, logits_to_keep=1)

    with torch.inference_mode():
        return compare(
            lambda: Decoder(model, assistant.image_processor).prefill(ids, [image]), bare, repeats, device
        )


def bench_decode(assistant: Assistant, repeats: int, device: str) -> Result:
    """Compare tokens a second of a text dialog with the bare LLM's generate on the same prompt."""
    llm = LlamaForCausalLM(assistant.model.config).to(device).eval()
    llm.load_state_dict(assistant.model.state_dict(), strict=False)
    params = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS)
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    prompt = torch.randint(300, len(assistant.tokenizer), (1, 32), device=device)

    def ours() -> None:
        session: ChatSession = assistant.session()
        session.ask("Tell me a story about the sea and the wind.", params=params)
        assert session.finish_reason == "length", session.finish_reason

    def plain() -> None:
        llm.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **settings)

    found = compare(ours, plain, repeats, device)
    rates = {name: round(NEW_TOKENS / found[name], 1) for name in ("ours", "plain")}
    return {"tokens_per_second": rates, "ratio": round(rates["ours"] / rates["plain"], 3)}


def bench_second_turn(assistant: Assistant, repeats: int, device: str) -> Result:
    """Compare the first piece of a second answer with and without what the first turn left."""
    params = SamplingParams(temperature=0, max_new_tokens=8)
    session = assistant.session()
    session.ask("What is this?", [image_of(1)], params)
    messages = [list(one) for one in session.conversation.messages]

    def first_piece(decoder: Decoder) -> None:
        session.decoder = decoder
        session.conversation.messages = [list(one) for one in messages]
        pieces = session.stream("And which colours does it have?", params=params)
        next(pieces)
        pieces.close()

    kept = session.decoder
    fresh = lambda: first_piece(Decoder(assistant.model, assistant.image_processor))  # noqa: E731
    return compare(lambda: first_piece(kept), fresh, repeats, device)


def bench_batch(assistant: Assistant, images: list[Image.Image] | None, repeats: int, device: str) -> Result:
    """Compare short answers at batch 8 with one by one; images: one for each question, or none."""
    texts = [f"What is the {number}th thing here? Answer with a word." for number in range(QUESTIONS)]
    shown = [] if images is None else [images[number % len(images)] for number in range(QUESTIONS)]
    questions: Any = list(zip(texts, shown, strict=True)) if shown else texts
    settings = {"temperature": 0, "max_new_tokens": SHORT_ANSWER}

    def one_by_one() -> None:
        for question in questions:
            text, image = question if shown else (question, ())
            assistant.session().ask(text, [image] if shown else (), SamplingParams(**settings))

    def batched() -> None:
        assistant.batch(questions, batch_size=8, **settings)

    found = compare(batched, one_by_one, repeats, device)
    return {**found, "speedup": round(1 / found["ratio"], 2)}


def bench_random_models(args: argparse.Namespace, folder: Path) -> Result:
    """Run everything that needs no checkpoint."""
    small = make_assistant(folder / "small", 64, 2, args.device)
    assistant = make_assistant(folder / "given", args.hidden, args.layers, args.device)
    images = [image_of(number) for number in range(QUESTIONS)]
    batch = {}
    for name, one in (("small", small), ("given", assistant)):
        for kind, given in (("text", None), ("images", images)):
            batch[f"{name}_{kind}"] = bench_batch(one, given, args.repeats, args.device)
    return {
        "prefill": bench_prefill(assistant, args.repeats, args.device),
        "decode": bench_decode(assistant, args.repeats, args.device),
        "second_turn": bench_second_turn(assistant, args.repeats, args.device),
        "batch": batch,
        "load": bench_load(assistant.model.to("cpu"), folder / "given", args.repeats),
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
    parser.add_argument("--checkpoint", default=None, help="a checkpoint for the batch comparison")
    parser.add_argument("--images", default=None, help="folder of images for --checkpoint")
    args = parser.parse_args()
    result: Result = {"threads": torch.get_num_threads(), "torch": torch.__version__, **vars(args)}
    with tempfile.TemporaryDirectory() as name:
        result.update(bench_random_models(args, Path(name)))
    if args.checkpoint:
        files = sorted(Path(args.images).iterdir())[:QUESTIONS] if args.images else []
        images = [Image.open(file).convert("RGB") for file in files] or None
        assistant = load(args.checkpoint, device=args.device)
        result["checkpoint"] = bench_batch(assistant, images, args.repeats, args.device)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
