"""Put answers of several models side by side: `python -m llava.eval.generate_webpage_data_from_table`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llava.arguments import ProgramParser, local_path, output_path
from llava.atomic import write_text
from llava.utils import UserError, accept_any_text, lazy_names, run_program, shortened

__getattr__ = lazy_names(__name__, {"read_jsonl": "llava.eval.webpage.data"})

TABLE = "table"  # the reference's program has no flags, and reads and writes these


def trim_hanging_lines(s: str, n: int) -> str:
    """Return a text without its first n lines, and without blanks around it; "" where it has no more."""
    for _ in range(n):
        s = s.strip().partition("\n")[2]
    return s.strip()


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(
        prog="python -m llava.eval.generate_webpage_data_from_table",
        description="Write the answers of several models, and reviews of them, as data.json and as a page "
        "(index.html beside it) that shows them side by side. Needs no model.",
    )
    parser.add_argument(
        "--question", "-q", type=local_path, default=f"{TABLE}/question.jsonl", help="JSON lines of questions"
    )
    parser.add_argument(
        "--answers", "-a", type=local_path, nargs="+", required=True,
        help="files of answers, one a model; reviews measure by the first one",
    )  # fmt: skip
    parser.add_argument(
        "--reviews", "-r", type=local_path, nargs="*", default=[],
        help="files of reviews: of the second and further answers beside the first ones, in their order",
    )  # fmt: skip
    parser.add_argument(
        "--names", nargs="*", default=[], help="names of the models (default: their model_id, or the file)"
    )
    parser.add_argument(
        "--image-folder", type=local_path, default=None, help="folder of the images, to show them"
    )
    parser.add_argument(
        "--output", "-o", type=output_path, default="webpage/data.json", help="(default: webpage/data.json)"
    )
    return parser


def main() -> None:
    """Run the program; exit code 1 where answers are missing, unexpected or repeated, which is told."""
    accept_any_text()
    args = build_parser().parse_args()
    from llava.eval.run.places import refuse_overwriting
    from llava.eval.webpage.data import compared
    from llava.eval.webpage.page import page_of

    output = Path(args.output)
    page = output.with_name("index.html")
    if output.name == page.name:
        raise UserError("--output is index.html, which is the page's name; name the JSON, such as data.json")
    named = {"--answers": args.answers, "--reviews": args.reviews, "--question": [args.question]}
    refuse_overwriting(
        {f"file {n} of {flag}": Path(one) for flag, given in named.items() for n, one in enumerate(given, 1)},
        {"--output": output, "the page beside --output": page},
    )
    found = compared(Path(args.question), [*map(Path, args.answers)], [*map(Path, args.reviews)], args.names)
    folder = None if args.image_folder is None else Path(args.image_folder)
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"--image-folder {shortened(folder)} is no folder; name that of the questions' images"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(found.as_json(), indent=2))
    write_text(page, page_of(found.as_json(), folder))
    print(f"{len(found.questions):,} questions, {len(args.answers)} models: {output} and {page}")
    for one in found.complaints:
        print(one, file=sys.stderr)
    sys.exit(1 if found.complaints else 0)


if __name__ == "__main__":
    run_program(main)
