"""Measures the runner of llava.eval against the bare batched generate in the same run, and prints JSON.

python scripts/bench/evaluate.py [--hidden 512] [--layers 8] [--device cpu] [--repeats 3] [--questions 64]
    [--per-image 1]

The questions are about image files in the page cache. `runner`: answer_plan with an answers file, each line
on the disk; images are opened by threads. `bare`: generate_batch on dialogs whose images are open before the
clock starts. Questions a second of both, in turn, and their ratio (1: keeping answers and opening images cost
nothing). Seconds are those of the wall, as both wait for disks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inference import image_of, make_assistant

from llava.eval.run.answering import answer_plan
from llava.eval.run.local import LocalModel
from llava.eval.run.plan import make_plan
from llava.eval.tasks.base import TaskData
from llava.eval.tasks.digits import Digits
from llava.images import load_image
from llava.inference import SamplingParams, generate_batch
from llava.inference.dialog import Dialog

Result = dict[str, Any]


def write_questions(folder: Path, count: int, size: tuple[int, int], per_image: int) -> TaskData:
    """Write questions, `per_image` about each photograph of a usual size, and these as JPEG files."""
    (folder / "images").mkdir(parents=True)
    questions = []
    for number in range(count):
        image, place = f"{number // per_image}.jpg", number % per_image
        if place == 0:
            image_of(number).resize(size).save(folder / "images" / image, quality=90)
        text = f"{place}. " * (per_image > 1) + "What is shown here? " * (1 + number % 3)
        questions.append({"id": number, "kind": "k", "images": [image], "question": text, "answer": "yes"})
    (folder / "test.json").write_text(json.dumps(questions))
    return TaskData(folder)


def bench(args: argparse.Namespace, folder: Path) -> Result:
    """Measure both, in turn."""
    assistant = make_assistant(folder / "given", args.hidden, args.layers, args.device)
    data = write_questions(folder / "data", args.questions, (640, 480), args.per_image)
    params = SamplingParams(temperature=0, max_new_tokens=args.new_tokens)
    asker = LocalModel(
        assistant.loaded, params, model_id="bench", conv_mode="llava_v1", batch_size=args.batch_size
    )
    asks = make_plan(Digits(), data).asks
    opened = [
        Dialog(one.conversation, [load_image(str(image)) for image in one.images])
        for one in (asker.dialog(ask) for ask in asks)
    ]
    expected = [
        one.text for one in generate_batch(assistant.loaded, opened, params, batch_size=args.batch_size)
    ]
    rates: dict[str, list[float]] = {"runner": [], "bare": []}
    for repeat in range(args.repeats):
        start = time.perf_counter()
        done = answer_plan(make_plan(Digits(), data), asker, folder / f"{repeat}.jsonl", quiet=True)
        rates["runner"].append(args.questions / (time.perf_counter() - start))
        assert [one["text"] for one in done.records] == expected, "the runner answers otherwise"
        start = time.perf_counter()
        generate_batch(assistant.loaded, opened, params, batch_size=args.batch_size)
        rates["bare"].append(args.questions / (time.perf_counter() - start))
    medians = {name: round(statistics.median(values), 3) for name, values in rates.items()}
    ratios = [one / other for one, other in zip(rates["runner"], rates["bare"], strict=True)]
    return {
        "questions_per_second": medians,
        "ratio": round(statistics.median(ratios), 3),
        "repeats": args.repeats,
        "questions": args.questions,
        "per_image": args.per_image,
        "batch_size": args.batch_size,
        "device": args.device,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--per-image", type=int, default=1, help="questions about each image")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        json.dump(bench(args, Path(folder)), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
