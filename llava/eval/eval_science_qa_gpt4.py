"""Score ScienceQA by GPT-4's answers, and by ours where it gave none (llava.eval.eval_science_qa_gpt4)."""

from __future__ import annotations

from llava.arguments import ProgramParser, local_path
from llava.eval.scoring.science_qa import add_flags, ensemble, share_line
from llava.utils import accept_any_text, run_program


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(
        prog="python -m llava.eval.eval_science_qa_gpt4",
        description="Score ScienceQA by GPT-4's answers, and by ours where it gave none.",
    )
    add_flags(parser)
    parser.add_argument("--gpt4-result", type=local_path, required=True, help="result file of GPT-4")
    parser.add_argument("--our-result", type=local_path, required=True, help="our answers file")
    return parser


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    files = (args.gpt4_result, args.our_result, None)
    counts, _ = ensemble(args.base_dir, args.split, args.options, files)
    print(share_line(counts, "gpt4_ours", "Correct"))
    print(share_line(counts, "upper", "Correct (upper)"))
    print(share_line(counts, "gpt4_failed", "GPT-4 NO-ANS (RANDOM)", "Percentage"))


if __name__ == "__main__":
    run_program(main)
