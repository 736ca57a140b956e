"""Score answers to TextVQA: `python -m llava.eval.eval_textvqa`, with the reference's flags."""

from __future__ import annotations

from pathlib import Path

from llava.arguments import ProgramParser, local_path
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.tasks.files import ID, TEXT, read_lines, read_listed
from llava.eval.tasks.short.textvqa_prompts import checked_question_of
from llava.utils import UserError, accept_any_text, run_program, shortened

GRADED = ".graded.jsonl"  # `llava.eval score` writes such a file beside the answers


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(prog="python -m llava.eval.eval_textvqa", description="Score answers to TextVQA.")
    parser.add_argument(
        "--annotation-file", type=local_path, required=True, help="TextVQA_0.5.1_val.json, with the answers"
    )
    parser.add_argument("--result-file", type=local_path, default=None, help="an answers file")
    parser.add_argument(
        "--result-dir", type=local_path, default=None, help="a folder whose files of answers are all scored"
    )
    return parser


def prompt_processor(prompt: str) -> str:
    """Return a prompt's question in lower case. Raises UserError for a prompt that is none of TextVQA."""
    return checked_question_of(prompt)


def eval_single(annotation_file: str, result_file: str) -> None:
    """Score one answers file, and print name, number of answers and accuracy. Raises UserError."""
    path = Path(annotation_file)
    rows = read_listed(path, "data", {"image_id": ID, "question": TEXT, "answers": list})
    annotations = {(row["image_id"], str(row["question"]).lower()): row for row in rows}
    results = read_lines(Path(result_file), {"question_id": ID, "prompt": TEXT, "text": TEXT})
    predictions = []
    for number, one in enumerate(results, start=1):
        key = (one["question_id"], prompt_processor(str(one["prompt"])))
        if key not in annotations:
            raise UserError(
                f"{result_file}, line {number}: {path} has no question {shortened(repr(key[1]), 120)} about "
                f"the image {key[0]!r}; expected answers to this question set"
            )
        predictions.append({"pred_answer": one["text"], "gt_answers": annotations[key]["answers"]})
    print(Path(result_file).stem)
    accuracy = TextVQAAccuracyEvaluator().eval_pred_list(predictions)
    print(f"Samples: {len(predictions)}\nAccuracy: {100 * accuracy:.2f}%\n")


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    if args.result_file is None and args.result_dir is None:
        raise UserError("nothing to score was named; give --result-file, or --result-dir")
    if args.result_file is not None:
        eval_single(args.annotation_file, args.result_file)
    if args.result_dir is not None:
        if not Path(args.result_dir).is_dir():
            raise UserError(f"--result-dir {args.result_dir} is no folder; expected one of answers files")
        for path in sorted(Path(args.result_dir).iterdir()):
            if path.suffix == ".jsonl" and not path.name.endswith(GRADED):
                eval_single(args.annotation_file, str(path))
            else:
                print(f"Skipping {path.name}")


if __name__ == "__main__":
    run_program(main)
