"""Turns answers to MMBench into the workbook that its server took."""

from pathlib import Path

from llava.arguments import ProgramParser, local_path, output_path, refuse_overwriting
from llava.utils import run_program


def main() -> None:
    """Parse the command line and convert."""
    parser = ProgramParser(description="Write MMBench's workbook.")
    parser.add_argument("--annotation-file", type=local_path, required=True, help="the table of questions")
    parser.add_argument("--result-dir", type=local_path, required=True, help="folder of the answers file")
    parser.add_argument("--upload-dir", type=output_path, required=True, help="folder to write to")
    parser.add_argument("--experiment", required=True, help="name of the answers file without .jsonl")
    args = parser.parse_args()
    from llava.eval.scoring.converters import convert_mmbench  # reads tables, for which it loads pyarrow

    result = Path(args.result_dir) / f"{args.experiment}.jsonl"
    table, workbook = Path(args.annotation_file), Path(args.upload_dir) / f"{args.experiment}.xlsx"
    refuse_overwriting({"--annotation-file": table}, {"the workbook in --upload-dir": workbook})
    convert_mmbench(table, result, workbook)


if __name__ == "__main__":
    run_program(main)
