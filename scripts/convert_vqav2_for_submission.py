"""Turns answers to VQAv2 (answers/SPLIT/CKPT/merge.jsonl) into a submission."""

from pathlib import Path

from llava.arguments import ProgramParser, local_path
from llava.utils import run_program


def main() -> None:
    """Parse the command line and convert."""
    parser = ProgramParser(description="Write a submission to VQAv2.")
    parser.add_argument(
        "--dir",
        type=local_path,
        default="./playground/data/eval/vqav2",
        help="folder of VQAv2's data",
    )
    parser.add_argument("--ckpt", required=True, help="name of the checkpoint")
    parser.add_argument("--split", required=True, help="name of the split")
    args = parser.parse_args()
    from llava.eval.scoring.converters import convert_vqav2  # reads tables, for which it loads pyarrow

    convert_vqav2(Path(args.dir), args.ckpt, args.split)


if __name__ == "__main__":
    run_program(main)
