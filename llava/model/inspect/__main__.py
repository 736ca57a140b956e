r"""Shows what a checkpoint is, what it needs and what is wrong with it, without reading its weights.

python -m llava.model.inspect ./checkpoints/llava-v1.5-7b [--model-base B] [--json] [--verify]

Exit status: 0 it can be chatted with, 1 something is missing or wrong, 2 it is no checkpoint.
(This folder has no __init__.py: a module named inspect beside the others would hide Python's own from
programs that are run by their file, as `python llava/model/apply_delta.py`.)
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from llava.model.checkpoints.checksums import INDEX_FILE, damaged_files, read_list
from llava.model.tools.inspection import Part, Report, inspect_checkpoint
from llava.model.tools.usage import ExampleParser
from llava.utils import run_program

PROGRAM = "python -m llava.model.inspect"
SHOWN = 8  # names of each list of weights


def main() -> None:
    """Parse the command line, print the report, and leave with its exit status."""
    parser = ExampleParser(
        prog=PROGRAM,
        description="Show what a checkpoint is, needs and lacks, without reading its weights. Exit status:\n"
        "0 it can be chatted with, 1 something is missing or wrong, 2 it is no checkpoint.",
        examples=(
            f"{PROGRAM} ./checkpoints/llava-v1.5-7b",
            f"{PROGRAM} ./checkpoints/llava-lora --model-base lmsys/vicuna-7b-v1.5",
        ),
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder, or hub name that is in the cache; nothing is downloaded",
    )
    parser.add_argument("--model-base", help="base model of a LoRA or projector-only checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON with every weight's name")
    parser.add_argument(
        "--verify", action="store_true", help="read all files and compare them with their stored checksums"
    )
    args = parser.parse_args()
    report = inspect_checkpoint(args.checkpoint, args.model_base)
    if args.verify:
        report = verified(report)
    if args.json:
        text = json.dumps({**dataclasses.asdict(report), "can_chat": report.can_chat}, indent=2)
    else:
        text = "\n".join(lines(report))
    sys.stdout.write(text + "\n")
    sys.exit(0 if report.can_chat else 1)


def verified(report: Report) -> Report:
    """Add to a report what the checksums of the folder say; without checksums, that there are none."""
    folder = Path(report.path)
    if not (folder / INDEX_FILE).is_file() or not (sums := read_list(folder)[1]):
        note = f"there are no checksums ({INDEX_FILE}), so nothing could be verified"
        return dataclasses.replace(report, notes=[*report.notes, note])
    damage = damaged_files(folder)
    notes = [] if damage else [f"the checksums of all {len(sums)} files are right"]
    return dataclasses.replace(report, notes=[*report.notes, *notes], problems=[*report.problems, *damage])


def lines(report: Report) -> Iterator[str]:
    """Yield the report as lines for a person."""
    told = {
        "what": report.what,
        "base model": _place(report.base),
        "vision tower": _place(report.tower),
        "template": f"{report.template} ({report.template_reason})",
        "parameters": ", ".join(f"{part} {count:,}" for part, count in report.parameters.items()),
        "on disk": f"{report.bytes:,} bytes" + (f" in {', '.join(report.dtypes)}" if report.dtypes else ""),
        "quantised": report.quantization,
        "context": _context(report),
        "tokenizer": report.tokenizer and f"{report.tokens} tokens ({report.tokenizer})",
        "generation config": report.generation_config,
        "missing weights": _some(report.missing),
        "extra weights": _some(report.unexpected),
        "other shapes": _some(
            [f"{name} {stored}, expected {asked}" for name, stored, asked in report.misshapen]
        ),
    }
    yield report.path
    yield from (f"  {name + ':':18} {value}" for name, value in told.items() if value)
    yield from (f"  {'note:':18} {note}" for note in report.notes)
    yield from (f"  {'problem:':18} {problem}" for problem in report.problems)
    yield f"  {'chat:':18} {'yes' if report.can_chat else 'no'}"


def _place(part: Part | None) -> str | None:
    return None if part is None else f"{part.name} ({part.place if part.present else 'not here'})"


def _context(report: Report) -> str | None:
    if report.context_length is None:
        return None
    positions = f" (the LLM has {report.positions} positions)" if report.positions else ""
    return f"{report.context_length} tokens{positions}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more (--json lists all)" if len(names) > SHOWN else ""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}" if names else ""


if __name__ == "__main__":
    run_program(main)
