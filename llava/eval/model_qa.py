"""Answer the text questions of a file, as Vicuna-80's: `python -m llava.eval.model_qa`."""

from __future__ import annotations

import sys

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import accept_any_text, lazy_names, run_program


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(
        prog="python -m llava.eval.model_qa",
        description="Answer text questions with a language model, or with a LLaVA model.",
    )
    parser.add_argument(
        "--model-name",
        type=local_path,
        default="facebook/opt-350m",
        help="folder or hub name of a checkpoint",
    )
    parser.add_argument("--question-file", type=local_path, default="tables/question.jsonl", help="questions")
    parser.add_argument(
        "--answers-file", type=output_path, default="answer.jsonl", help="answers, resumed if it is there"
    )
    return parser


__getattr__ = lazy_names(__name__, {"eval_model": "llava.eval.doors.qa"})


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    from llava.eval.doors.qa import eval_model  # loads torch

    sys.exit(eval_model(args.model_name, args.question_file, args.answers_file))


if __name__ == "__main__":
    run_program(main)
