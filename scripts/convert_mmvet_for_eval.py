"""Turns answers to MM-Vet into what its judge reads."""

from pathlib import Path

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import run_program


def main() -> None:
    """Parse the command line and convert."""
    parser = ProgramParser(description="Write MM-Vet's answers.")
    parser.add_argument("--src", type=local_path, required=True, help="the answers file")
    parser.add_argument("--dst", type=output_path, required=True, help="file to write")
    args = parser.parse_args()
    from llava.eval.scoring.converters import convert_mmvet  # reads tables, for which it loads pyarrow

    convert_mmvet(Path(args.src), Path(args.dst))


if __name__ == "__main__":
    run_program(main)
