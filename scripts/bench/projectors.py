"""Train the quickstart's digits with each projector, all else equal: what it learns, tokens; JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for playground

from llava.atomic import write_text  # noqa: E402
from llava.inference.model_inputs import image_length  # noqa: E402
from llava.utils import UserError, run_program  # noqa: E402
from playground.digits import evaluate as exam  # noqa: E402
from playground.digits.questions import ONE_IMAGE, TWO_IMAGES, is_right  # noqa: E402
from playground.digits.quickstart import make_data_and_models  # noqa: E402
from playground.digits.training import train  # noqa: E402

BASELINE = "mlp2x_gelu"
PROJECTORS = (  # the digits tower gives 2 x 2 features
    BASELINE,
    "linear",
    "identity",
    "mlp2x_res2x_gelu",
    "avg_pool2x_mlp2x_gelu",
    "pixel_shuffle2x_mlp2x_gelu",
    "perceiver2x_2tokens",
    "qformer2x_2tokens",
)
KINDS = (*ONE_IMAGE, *TWO_IMAGES)
BEGIN, END = "<!-- numbers:begin -->\n", "<!-- numbers:end -->"


def stages(kind: str, work: Path, steps: int) -> Path:
    """Run both stages with a projector; returns the folder of the model. steps: of stage 2, 0 for all."""
    common = {"mm_projector_type": kind, "dataloader_num_workers": "0", "logging_steps": "50"}
    first, model = work / f"{kind}-pretrain", work / f"llava-{kind}"
    trained = f"{first}/mm_projector.bin"
    changed: dict[str, str | None] = {**common, "output_dir": str(model), "pretrain_mm_mlp_adapter": trained}
    if kind == "identity":  # nothing of it trains in stage 1
        changed["pretrain_mm_mlp_adapter"] = None
    else:
        shutil.rmtree(first, ignore_errors=True)
        train("pretrain", work, "cpu", {**common, "output_dir": str(first)})
    shutil.rmtree(model, ignore_errors=True)
    train("finetune", work, "cpu", changed | ({"max_steps": str(steps)} if steps else {}))
    return model


def measure(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train with a projector and ask the test questions: accuracies, tokens, parameters, seconds."""
    start = time.perf_counter()
    folder = stages(kind, args.output, args.steps)
    seconds = round(time.perf_counter() - start)
    answerer = exam.Answerer(folder, "cpu")
    model = answerer.asker.loaded.model
    everything = exam.read_questions(args.output / "data" / "test.json")
    asked = [one for name in KINDS for one in [q for q in everything if q["kind"] == name][: args.questions]]
    answered = exam.answer_all(answerer, asked, args.output / "data" / "images")
    rights = {
        name: [is_right(one["said"], one["answer"]) for one in answered if one["kind"] == name]
        for name in KINDS
    }
    accuracy = {name: round(sum(right) / len(right), 4) for name, right in rights.items()}
    return {
        "projector": kind,
        "tokens": image_length(model, (64, 64)),
        "parameters": sum(one.numel() for one in model.get_model().mm_projector.parameters()),
        **accuracy,
        "mean": round(sum(accuracy.values()) / len(accuracy), 4),
        "seconds": seconds,
    }


def table(report: dict[str, Any]) -> str:
    """Write the report as the table of docs/projectors.md."""
    rows = report["projectors"]
    base = next(row for row in rows if row["projector"] == BASELINE)
    lines = [
        "| projector | tokens of an image | parameters | which digit | odd or even | mean of the five | "
        f"against `{BASELINE}` |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['projector']}` | {row['tokens']} | {row['parameters']:,} | {row['which_digit']:.1%} | "
            f"{row['odd_even']:.1%} | {row['mean']:.1%} | {100 * (row['mean'] - base['mean']):+.1f} |"
        )
    steps = f"the first {report['steps']} steps of" if report["steps"] else "all of"
    asked = f"{report['questions']} test questions of each kind"
    return "\n".join(lines) + f"\n\nStage 1, then {steps} stage 2; {asked}; one run each, one seed.\n"


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "projectors", help="folder to work in")
    parser.add_argument("--projectors", nargs="+", default=list(PROJECTORS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=0, help="steps of stage 2; 0: the quickstart's")
    parser.add_argument("--questions", type=int, default=899, help="test questions of each kind")
    parser.add_argument("--docs", type=Path, help="write the table into this page, between its marks")
    return parser


def main() -> None:
    """Measure what is not measured yet in --output; prints all of it as JSON."""
    args = build_parser().parse_args()
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    if BASELINE not in args.projectors:
        raise UserError(f"--projectors lacks {BASELINE}, which the others are compared with")
    rows = []
    with redirect_stdout(sys.stderr):  # JSON alone on stdout
        if not (args.output / "models" / "llm" / "config.json").exists():
            make_data_and_models(args.output)
        for kind in args.projectors:
            note = args.output / f"{kind}-{args.steps}-{args.questions}.json"
            if not note.exists():
                write_text(note, json.dumps(measure(kind, args)) + "\n")
            rows.append(json.loads(note.read_text(encoding="utf-8")))
            print(rows[-1], flush=True)
    report = {"steps": args.steps, "questions": args.questions, "projectors": rows}
    if args.docs:
        before, _, rest = args.docs.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        if not after:
            raise UserError(f"--docs {args.docs} has no {BEGIN.strip()} and {END}")
        write_text(args.docs, f"{before}{BEGIN}{table(report)}{END}{after}")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run_program(main)
