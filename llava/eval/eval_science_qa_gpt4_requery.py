"""Score ScienceQA where GPT-4, asked once more, decides between its answer and ours."""

from __future__ import annotations

from llava.arguments import ProgramParser, local_path, output_path
from llava.eval.scoring.science_qa import add_flags, ensemble, keep_problems, share_line, write_result
from llava.utils import accept_any_text, run_program


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(
        prog="python -m llava.eval.eval_science_qa_gpt4_requery",
        description="Score ScienceQA by what GPT-4 says when it is shown its answer and ours.",
    )
    add_flags(parser)
    parser.add_argument("--gpt4-result", type=local_path, required=True, help="result file of GPT-4")
    parser.add_argument(
        "--requery-result", type=local_path, required=True, help="result file of GPT-4 asked once more"
    )
    parser.add_argument("--our-result", type=local_path, required=True, help="our answers file")
    parser.add_argument("--output-result", type=output_path, required=True, help="final result, as JSON")
    return parser


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    keep_problems(args, "output_result")
    files = (args.gpt4_result, args.our_result, args.requery_result)
    counts, result = ensemble(args.base_dir, args.split, args.options, files)
    print(share_line(counts, "ours", "Our-Correct"))
    print(share_line(counts, "gpt4", "GPT-4-Correct"))
    print(share_line(counts, "gpt4_failed", "GPT-4 NO-ANS (RANDOM)", "Percentage"))
    print(share_line(counts, "gpt4_ours", "GPT-4-OursVisual-Correct"))
    print(share_line(counts, "requery", "Requery-Correct"))
    print(share_line(counts, "upper", "Correct upper"))
    print(share_line(counts, "requeried", "Requeried", "Percentage"))  # not in the reference
    write_result(args.output_result, result)


if __name__ == "__main__":
    run_program(main)
