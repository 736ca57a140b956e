"""Answer the text questions of a file, as Vicuna-80's: `python -m llava.eval.model_qa`."""

from __future__ import annotations

import argparse
import sys

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import accept_any_text, run_program


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


def eval_model(model_name: str, questions_file: str, answers_file: str) -> int:
    """Answer the questions of a file at temperature 0.7; returns the exit code, 1 where one has no answer."""
    from llava.eval.run.asking_files import answer_file  # loads torch
    from llava.eval.tasks.judged.vicuna80 import Vicuna80

    asked = argparse.Namespace(
        model_path=model_name,
        question_file=questions_file,
        answers_file=answers_file,
        image_folder="",
        conv_mode=Vicuna80.conv_mode,
        temperature=Vicuna80.temperature,
        num_chunks=1,
        chunk_idx=0,
    )
    return answer_file(asked, max_new_tokens=Vicuna80.max_new_tokens, task=Vicuna80())


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    sys.exit(eval_model(args.model_name, args.question_file, args.answers_file))


if __name__ == "__main__":
    run_program(main)
