"""Score answers to POPE: `python -m llava.eval.eval_pope`, with the reference's flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.arguments import ProgramParser, local_path
from llava.eval.tasks.files import ID, TEXT, read_lines
from llava.eval.tasks.rules import pope_says
from llava.eval.tasks.yes_no.counts import Counts
from llava.utils import UserError, accept_any_text, run_program

_FILE = "coco_pope_*.json"


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(prog="python -m llava.eval.eval_pope", description="Score answers to POPE.")
    parser.add_argument("--annotation-dir", type=local_path, required=True, help=f"folder of {_FILE}")
    parser.add_argument("--question-file", type=local_path, required=True, help="llava_pope_test.jsonl")
    parser.add_argument("--result-file", type=local_path, required=True, help="the answers file")
    return parser


def eval_pope(answers: list[dict[str, Any]], label_file: str) -> None:
    """Print counts and rates of answers beside the labels of a file, in their order.

    The text of each answer becomes "yes" or "no", as in the reference. A rate without a case is 0. Raises
    UserError unless there are as many answers as labels, and some.
    """
    labels = [str(row["label"]) for row in read_lines(Path(label_file), {"label": TEXT})]
    if not labels or len(labels) != len(answers):
        raise UserError(
            f"{label_file} has {len(labels)} labels, and there are {len(answers)} answers to its questions; "
            "expected as many, and at least one"
        )
    counts = Counts()
    for answer, label in zip(answers, labels, strict=True):
        answer["text"] = pope_says(answer["text"])
        counts.add(answer["text"] == "yes", label != "no")
    accuracy = (counts.tp + counts.tn) / counts.n
    yes = (counts.tp + counts.fp) / counts.n
    print("TP\tFP\tTN\tFN\t")
    print(f"{counts.tp}\t{counts.fp}\t{counts.tn}\t{counts.fn}")
    print(f"Accuracy: {accuracy}\nPrecision: {counts.precision}\nRecall: {counts.recall}")
    print(f"F1 score: {counts.f1}\nYes ratio: {yes}")
    rates = (counts.f1, accuracy, counts.precision, counts.recall, yes)
    print(", ".join(f"{one:.3f}" for one in rates))


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    rows = read_lines(Path(args.question_file), {"question_id": ID, "category": TEXT})
    categories = {row["question_id"]: row["category"] for row in rows}
    answers = read_lines(Path(args.result_file), {"question_id": ID, "text": TEXT})
    for answer in answers:
        if answer["question_id"] not in categories:
            raise UserError(
                f"{args.result_file}: {args.question_file} has no question {answer['question_id']!r}; "
                "expected answers to this question set"
            )
    files = sorted(Path(args.annotation_dir).glob(_FILE))
    if not files:
        raise UserError(f"--annotation-dir {args.annotation_dir} holds no file {_FILE}")
    for path in files:
        category = path.stem.removeprefix("coco_pope_")
        own = [dict(one) for one in answers if categories[one["question_id"]] == category]
        print(f"Category: {category}, # samples: {len(own)}")
        eval_pope(own, str(path))
        print("====================================")


if __name__ == "__main__":
    run_program(main)
