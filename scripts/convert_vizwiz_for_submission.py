"""Turns answers to VizWiz into a submission."""

from pathlib import Path

from llava.arguments import ProgramParser, local_path, output_path
from llava.utils import run_program


def main() -> None:
    """Parse the command line and convert."""
    parser = ProgramParser(description="Write a submission to VizWiz.")
    parser.add_argument("--annotation-file", type=local_path, required=True, help="the benchmark's own file")
    parser.add_argument("--result-file", type=local_path, required=True, help="the answers file")
    parser.add_argument("--result-upload-file", type=output_path, required=True, help="file to write")
    args = parser.parse_args()
    from llava.eval.scoring.converters import convert_vizwiz  # reads tables, for which it loads pyarrow

    convert_vizwiz(Path(args.annotation_file), Path(args.result_file), Path(args.result_upload_file))


if __name__ == "__main__":
    run_program(main)
