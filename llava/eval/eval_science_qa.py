"""Score answers to ScienceQA: `python -m llava.eval.eval_science_qa`, with the reference's flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.arguments import ProgramParser, local_path, output_path
from llava.eval.metrics.letters import choice_index
from llava.eval.scoring.science_qa import add_flags, keep_problems, score, summary, write_result
from llava.utils import accept_any_text, run_program


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(
        prog="python -m llava.eval.eval_science_qa", description="Score answers to ScienceQA."
    )
    add_flags(parser)
    parser.add_argument("--result-file", type=local_path, required=True, help="the answers file")
    parser.add_argument(
        "--output-file", type=output_path, required=True, help="right and wrong answers, as JSON"
    )
    parser.add_argument(
        "--output-result", type=output_path, required=True, help="accuracy and the choices taken, as JSON"
    )
    return parser


def convert_caps(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return answers in the form of captions of COCO."""
    return [{"image_id": int(one["question_id"]), "caption": one["text"]} for one in results]


def get_pred_idx(prediction: str, choices: Sequence[object], options: Sequence[str]) -> int:
    """Return the place of a letter among the options of a question, -1 where it is none of them."""
    return choice_index(prediction, choices, options)


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    keep_problems(args, "output_file", "output_result")
    details, result = score(args.base_dir, args.split, args.options, args.result_file)
    print(summary(details))
    write_result(args.output_file, details)
    write_result(args.output_result, result)


if __name__ == "__main__":
    run_program(main)
