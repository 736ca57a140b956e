"""Turns ScienceQA into training data (convert_to_llava) or JSON lines of instructions (convert_to_jsonl)."""

from pathlib import Path

from llava.arguments import ProgramParser, local_path
from llava.utils import run_program


def build_parser() -> ProgramParser:
    """Build the command line: two programs with the same flags, spelled with - or _."""
    parser = ProgramParser(description="Convert ScienceQA.")
    programs = parser.add_subparsers(dest="program", required=True)
    for name, what in (
        ("convert_to_llava", "training data: llava_SPLIT_FORMAT.json"),
        ("convert_to_jsonl", "instructions: scienceqa_SPLIT_FORMAT.jsonl"),
    ):
        own = programs.add_parser(name, help=what, description=f"Write {what}, in the folder of ScienceQA.")
        own.add_argument(
            "--base-dir", "--base_dir", type=local_path, required=True, help="folder of problems.json"
        )
        own.add_argument("--split", required=True, help="train, val, test or a mini split")
        own.add_argument(
            "--prompt-format",
            "--prompt_format",
            default="QCM-LEPA",
            help="what stands in prompt and answer (default: QCM-LEPA)",
        )
    return parser


def main() -> None:
    """Parse the command line and convert."""
    args = build_parser().parse_args()
    from llava.eval.scoring.science_qa_prompts import write_instructions, write_llava  # loads pyarrow

    write = write_llava if args.program == "convert_to_llava" else write_instructions
    write(Path(args.base_dir), args.split, args.prompt_format)


if __name__ == "__main__":
    run_program(main)
