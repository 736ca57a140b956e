"""The command lines of the review programs; the judge itself is imported once they are read."""

from __future__ import annotations

from llava.arguments import ProgramParser, local_path, output_path
from llava.eval.judges.settings import add_judge_flags

PURPOSE = {
    "text": "Let another model score two answers to each question (Vicuna-80).",
    "bench": "Let another model score two answers to each question of LLaVA-Bench (in the wild).",
    "visual": "Let another model score two answers to each question about COCO images.",
}


def review_parser(program: str, kind: str) -> ProgramParser:
    """Build the command line of one of the three review programs: the reference's flags, and the judge's."""
    parser = ProgramParser(prog=f"python -m llava.eval.{program}", description=PURPOSE[kind])
    parser.add_argument("--question", "-q", type=local_path, required=True, help="JSON lines of questions")
    if kind != "text":
        parser.add_argument(
            "--context", "-c", type=local_path, required=True, help="JSON lines that describe the images"
        )
    parser.add_argument(
        "--answer-list",
        "-a",
        type=local_path,
        nargs="+",
        default=[],
        help="two files of answers: those to measure by, and those of the model",
    )
    parser.add_argument(
        "--rule", "-r", type=local_path, default=None, help="JSON rules (default: the built-in ones)"
    )
    parser.add_argument(
        "--output",
        "-o",
        type=output_path,
        required=True,
        help="reviews; those that it holds are not asked again",
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest reply (default: 1024)")
    add_judge_flags(parser)
    parser.add_argument(
        "--judge-dry-run", action="store_true", help="read all files, say what judging costs, and ask nothing"
    )
    return parser
