"""Measures the engine against asking one after another in the same run, and prints JSON.

python scripts/bench/serve.py [--hidden 512] [--layers 8] [--device cpu] [--repeats 3] [--new-tokens 64]

- equal, ragged: 8 clients at once with prompts of about 150 tokens, or of 30 to 600, without images and
  with one each; tokens a second against ChatSession one by one, and the ratio (above 1: the engine is faster)
- second_turn: the second question of a dialog with an image, with what the first has left against an engine
  that keeps nothing; seconds and their ratio
Models are random, nothing is kept between the dialogs of equal and ragged. Seconds are those of the processor
on a CPU, so that other load does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from inference import image_of, make_assistant
from models import clock

from llava.inference import Assistant, ChatSession, Dialog, SamplingParams
from llava.inference.engine import Engine
from llava.inference.prompt import new_dialog

CLIENTS = 8
Result = dict[str, Any]
Question = tuple[str, list[Any]]


def words(count: int, seed: int) -> str:
    """Return a text of about `count` tokens, another one for each seed."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(WORDS), (count,), generator=generator).tolist()
    return " ".join(WORDS[one] for one in picks)


WORDS = ("the", "sea", "is", "wide", "and", "old", "ships", "sail", "on", "it", "when", "a", "wind", "blows")


def questions(kind: str, with_images: bool, seed: int) -> list[Question]:
    """Return one question for each client."""
    lengths = [110] * CLIENTS if kind == "equal" else [5, 80, 160, 240, 320, 400, 480, 560]
    images = [[image_of(seed * CLIENTS + number)] if with_images else [] for number in range(CLIENTS)]
    return [(words(length, seed + 31 * number), images[number]) for number, length in enumerate(lengths)]


def dialog_of(assistant: Assistant, question: Question) -> Dialog:
    """Return a question as the engine takes it."""
    return new_dialog(assistant.template, *question, assistant.model.config, has_tower=True)


def timed(work: Callable[[], int], device: str) -> float:
    """Return tokens a second of a function that returns how many it has made."""
    start = clock(device)
    count = work()
    return count / (clock(device) - start)


def bench_clients(assistant: Assistant, kind: str, with_images: bool, args: argparse.Namespace) -> Result:
    """Compare 8 clients at once with one after another, in turn."""
    params = SamplingParams(temperature=0, max_new_tokens=args.new_tokens)
    engine = Engine(assistant.loaded, max_running=CLIENTS, cache_bytes=0, memory_bytes=2**33)

    def together(asked: list[Question]) -> int:
        tickets = [engine.submit(dialog_of(assistant, one), params) for one in asked]
        return sum(len(one.result().ids) for one in tickets)

    def one_by_one(asked: list[Question]) -> int:
        count = 0
        for text, images in asked:
            session = ChatSession(assistant.loaded, template=assistant.template)
            session.ask(text, images, params)
            assert session.finish_reason == "length", session.finish_reason
            count += args.new_tokens
        return count

    rates: dict[str, list[float]] = {"together": [], "one_by_one": []}
    for repeat in range(args.repeats + 1):
        asked = questions(kind, with_images, repeat)
        for name, work in (("together", together), ("one_by_one", one_by_one)):
            rate = timed(lambda work=work, asked=asked: work(asked), args.device)
            rates[name] += [rate] if repeat else []  # the first warms up
    engine.close()
    medians = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    return {"tokens_per_second": medians, "ratio": round(medians["together"] / medians["one_by_one"], 2)}


def bench_second_turn(assistant: Assistant, args: argparse.Namespace) -> Result:
    """Compare a second turn with and without what the first has left."""
    params = SamplingParams(temperature=0, max_new_tokens=8)
    seconds: dict[str, list[float]] = {"kept": [], "full": []}
    engines = {
        "kept": Engine(assistant.loaded, memory_bytes=2**33),
        "full": Engine(assistant.loaded, memory_bytes=2**33, cache_bytes=0),
    }
    for repeat in range(args.repeats + 1):
        first = dialog_of(assistant, (words(200, repeat), [image_of(repeat)]))
        for name, engine in engines.items():
            dialog = Dialog(first.conversation.copy(), first.images)
            dialog.conversation.messages[-1][1] = engine.submit(first, params).result().text
            dialog.conversation.append_message(dialog.conversation.roles[0], "And why?")
            dialog.conversation.append_message(dialog.conversation.roles[1], None)
            start = clock(args.device)
            engine.submit(dialog, params).result()
            seconds[name] += [clock(args.device) - start] if repeat else []
    for engine in engines.values():
        engine.close()
    medians = {name: round(statistics.median(found), 4) for name, found in seconds.items()}
    return {**medians, "ratio": round(medians["kept"] / medians["full"], 3)}


def main() -> None:
    """Run all parts and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=512, help="width of the random model")
    parser.add_argument("--layers", type=int, default=8, help="layers of the random tower and LLM")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each part")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of an answer")
    args = parser.parse_args()
    result: Result = {"threads": torch.get_num_threads(), "torch": torch.__version__, **vars(args)}
    with tempfile.TemporaryDirectory() as name:
        assistant = make_assistant(Path(name) / "given", args.hidden, args.layers, args.device)
        for kind in ("equal", "ragged"):
            for with_images in (False, True):
                part = f"{kind}_{'images' if with_images else 'text'}"
                result[part] = bench_clients(assistant, kind, with_images, args)
        result["second_turn"] = bench_second_turn(assistant, args)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
