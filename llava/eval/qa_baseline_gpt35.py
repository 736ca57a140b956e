"""Let a model behind a server answer text questions: `python -m llava.eval.qa_baseline_gpt35` (Vicuna-80)."""

from __future__ import annotations

from llava.arguments import ProgramParser, local_path, output_path
from llava.eval.judges.settings import add_judge_flags
from llava.utils import accept_any_text, lazy_names, run_program

__getattr__ = lazy_names(__name__, {"get_answer": "llava.eval.judges.baseline"})


def build_parser() -> ProgramParser:
    """Build the command line: the reference's flags, and which model answers."""
    parser = ProgramParser(
        prog="python -m llava.eval.qa_baseline_gpt35",
        description="Let a model behind a server answer text questions; its name is that of --judge-model. "
        "The reference asked gpt-3.5-turbo, which is shut down.",
    )
    parser.add_argument("--question", "-q", type=local_path, required=True, help="JSON lines of questions")
    parser.add_argument(
        "--output",
        "-o",
        type=output_path,
        required=True,
        help="answers; those that it holds are not asked again",
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest answer (default: 1024)")
    add_judge_flags(parser)
    return parser


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    from llava.eval.judges.baseline import answer_all  # loads the readers of benchmarks' files

    answer_all(args)


if __name__ == "__main__":
    run_program(main)
