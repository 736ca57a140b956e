"""Summarise reviews of a judge: `python -m llava.eval.summarize_gpt_review`, with the reference's flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.arguments import ProgramParser, local_path
from llava.eval.judges.replies import PAIR, value_of
from llava.eval.tasks.files import read_lines
from llava.eval.tasks.grading import some_of
from llava.utils import UserError, accept_any_text, run_program

PREFIXES = ("gpt4_text_", "reviews_", "review_")
TO_JUDGE = ".to-judge.jsonl"  # what `llava.eval score` writes there where nobody has judged yet


def build_parser() -> ProgramParser:
    """Build the command line."""
    parser = ProgramParser(
        prog="python -m llava.eval.summarize_gpt_review",
        description="Print, of each file of reviews, the score of the second answers relative to the first "
        "ones, and both, by category. Reviews without scores are named and left out.",
    )
    parser.add_argument("--dir", "-d", type=local_path, default=None, help="folder of files of reviews")
    parser.add_argument(
        "--version", "-v", default=None, help="only files of this judge: 0613 in the name, or 0314 without it"
    )
    parser.add_argument(
        "--select", "-s", nargs="*", default=None, help="only files with all of these in the name"
    )
    parser.add_argument("--files", "-f", nargs="*", type=local_path, default=None, help="these files")
    parser.add_argument(
        "--ignore", "-i", nargs="*", type=int, default=None, help="ids of questions to leave out"
    )
    return parser


def review_files(folder: str | None, files: Sequence[str]) -> list[Path]:
    """Return the files that were named, else those of reviews in a folder, sorted. Raises UserError."""
    if files:
        return sorted(map(Path, files))
    if folder is None or not Path(folder).is_dir():
        raise UserError(
            f"the folder of reviews is {folder or 'not given'}; name it with -d, or files with -f"
        )
    found = [one for one in sorted(Path(folder).glob("*.jsonl")) if not one.name.endswith(TO_JUDGE)]
    if "review" not in str(folder):
        found = [one for one in found if one.name.startswith(PREFIXES)]
    if not found:
        raise UserError(f"{folder} holds no file of reviews; expected names such as {PREFIXES[1]}MODEL.jsonl")
    return found


def summarize(
    path: Path, ignore: Sequence[int]
) -> tuple[dict[str, tuple[float, float, float]], dict[str, list[str]]]:
    """Return category -> relative score in percent and both scores of 100; and what is amiss -> questions."""
    scores: dict[str, list[tuple[float, float]]] = {}
    seen: set[str] = set()
    amiss: dict[str, list[str]] = {}
    for number, review in enumerate(read_lines(path, {}), start=1):
        if review.get("question_id") in ignore:
            continue
        name = str(review.get("question_id", f"of line {number}"))
        if name in seen:  # all count, as in the reference
            amiss.setdefault("are of a question that has one already, and count as well", []).append(name)
        seen.add(name)
        pair = value_of(review, PAIR)
        if not isinstance(pair, list) or len(pair) != 2:
            amiss.setdefault("have no scores and are left out", []).append(name)
            continue
        for name in ["all", *([str(review["category"])] if "category" in review else [])]:
            scores.setdefault(name, []).append((pair[0], pair[1]))
    table = {}
    for name, pairs in sorted(scores.items()):
        first, second = (round(sum(column) / len(pairs), 3) for column in zip(*pairs, strict=True))
        relative = round(second / first * 100, 1) if first else float("nan")
        table[name] = (relative, round(first * 10, 1), round(second * 10, 1))
    return table, amiss


def main() -> None:
    """Run the program."""
    accept_any_text()
    args = build_parser().parse_args()
    files = review_files(args.dir, args.files or ())
    shown = 0
    for path in files:
        config = path.stem.replace("gpt4_text_", "")
        if args.select is not None and any(one not in config for one in args.select):
            continue
        if args.version is not None and args.version != ("0613" if "0613" in config else "0314"):
            continue
        shown += 1
        table, amiss = summarize(path, args.ignore or ())
        print(config)
        for name, row in table.items():
            print(name, *row)
        for what, names in amiss.items():
            print(f"{len(names)} reviews {what}: {some_of(names)}")
        if not table:
            print("no review has scores; there is nothing to summarise")
        print("=================================")
    if not shown:
        raise UserError(
            f"none of the {len(files)} files of reviews is of the wanted judge (-v) or has all words of -s "
            f"in its name; there are {some_of([one.stem for one in files])}"
        )


if __name__ == "__main__":
    run_program(main)
