"""The data doctor: python -m llava.train.check_data names every record that cannot be trained on, and why."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llava.arguments import ProgramParser, local_path, output_path
from llava.atomic import atomic_file, obstacle, words_of
from llava.train.data.sources import find_sources
from llava.train.data.table import RecordTable
from llava.train.data.validation import CheckSettings, Finding, check_range, open_all
from llava.train.labels.masks import LABEL_MASKS
from llava.train.records import DataError
from llava.utils import UserError, run_program, shortened

CHUNK = 64  # records that a process checks at a time
RECORDS_PER_PROCESS = 512  # fewer are not worth another process
EXIT_FAULTS = 1
MOST_WORKERS = 1024


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = ProgramParser(
        allow_abbrev=False,
        prog="python -m llava.train.check_data",
        description="Check training data before the first step. Exit code: 0 no fault, 1 faults, 2 usage.",
    )
    add = parser.add_argument
    add(
        "--data_path",
        type=local_path,
        required=True,
        help=".json, .jsonl or .parquet, a folder or pattern of them, or a mixture",
    )
    add("--image_folder", type=local_path, help="folder that image names are relative to")
    add("--data_cache_dir", type=local_path, help="folder for the table that large data is converted to")
    add(
        "--model_name_or_path",
        type=local_path,
        help="model whose tokenizer counts tokens; without one they are not counted",
    )
    add("--version", default="v1", help="conversation template (default: %(default)s)")
    add("--model_max_length", type=int, default=2048, help="tokens of a sample (default: %(default)s)")
    add(
        "--vision_tower",
        type=local_path,
        help="CLIP folder or hub name; without one an image counts as one token",
    )
    add("--image_aspect_ratio", default="square", choices=("square", "pad", "anyres"))
    add("--image_grid_pinpoints", help="tile grids of anyres, [[336,672],[672,336]]; by default the model's")
    add("--mm_patch_merge_type", default="flat", choices=("flat", "spatial", "spatial_unpad"))
    add("--mm_vision_select_feature", default="patch", choices=("patch", "cls_patch"))
    add("--label_masks", choices=LABEL_MASKS, help="how answers are found; by default as training chooses")
    add("--mm_use_im_start_end", type=_boolean, default=False, metavar="True|False")
    add("--workers", type=int, help="processes (default: one for each core, if there is enough to do)")
    add(
        "--fix",
        type=output_path,
        metavar="OUT",
        help="write the records without a fault to this new .json or .jsonl file",
    )
    add("--json", type=output_path, metavar="REPORT", help="write all findings to this file")
    return parser


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def main(argv: Sequence[str] | None = None) -> None:
    """Check, report and end with an exit code. Raises UserError for what cannot be checked."""
    args = build_parser().parse_args(argv)
    names = {field.name for field in fields(CheckSettings)}
    settings = CheckSettings(**{name: value for name, value in vars(args).items() if name in names})
    if args.workers is not None and not 1 <= args.workers <= MOST_WORKERS:
        raise UserError(f"--workers is {args.workers}; expected at least 1, and at most {MOST_WORKERS}")
    sources = {one.resolve() for source in find_sources(args.data_path) for one in source.files}
    for flag, output in (("--fix", args.fix), ("--json", args.json)):
        _check_output(flag, output, sources)
    records = open_all(settings)
    _check_folders(records)
    _check_fix(args.fix, records)

    findings = []
    for finding in find_all(settings, records, args.workers):
        findings.append(finding)
        if not finding.is_note:
            print(f"{records.name(finding.index)}: {finding.fault.kind}: {finding.fault.reason}")
    report = summarize(settings, records, findings)
    _print_summary(report)
    if args.json:
        _write(Path(args.json), [json.dumps(report, indent=1, ensure_ascii=False)], "--json")
    if args.fix:
        bad = {finding.index for finding in findings if not finding.is_note}
        write_clean(records, bad, Path(args.fix))
        print(f"{len(records) - len(bad)} records without a fault written to {args.fix}")
    if report["faults"]:
        sys.exit(EXIT_FAULTS)


def find_all(settings: CheckSettings, records: RecordTable, workers: int | None = None) -> Iterator[Finding]:
    """Check all records in order, in several processes, with a progress bar on stderr. Raises UserError."""
    from tqdm.auto import tqdm

    if workers is None:
        workers = min(os.cpu_count() or 1, math.ceil(len(records) / RECORDS_PER_PROCESS))
    chunk = max(1, min(CHUNK, math.ceil(len(records) / workers)))
    starts = range(0, len(records), chunk)
    stops = [min(start + chunk, len(records)) for start in starts]
    bar = tqdm(total=len(records), unit="record", desc="checking", disable=None)
    with bar:
        if workers == 1:
            for start, stop in zip(starts, stops, strict=True):
                yield from check_range(settings, start, stop)
                bar.update(stop - start)
            return
        # started afresh, not forked: torch may already have threads
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            chunks = pool.map(check_range, [settings] * len(stops), starts, stops)
            try:
                for start, stop, findings in zip(starts, stops, chunks, strict=True):
                    yield from findings
                    bar.update(stop - start)
            except BrokenProcessPool as error:
                raise UserError(
                    "a checking process was killed, perhaps for memory; use fewer --workers"
                ) from error


def summarize(settings: CheckSettings, records: RecordTable, findings: Sequence[Finding]) -> dict[str, Any]:
    """Collect what --json writes: counts, and every fault and note with its record."""

    def describe(finding: Finding) -> dict[str, Any]:
        file, row = records.place(finding.index)
        record = records[finding.index]
        own = record.get("id") if isinstance(record, dict) else None
        place = {"index": finding.index, "id": own, "file": str(file), "row": row}
        return {**place, "kind": finding.fault.kind, "reason": finding.fault.reason}

    faults = [finding for finding in findings if not finding.is_note]
    notes = [finding for finding in findings if finding.is_note]
    return {
        "data_path": settings.data_path,
        "tokens_checked": settings.model_name_or_path is not None,
        "records": len(records),
        "faulty_records": len({finding.index for finding in faults}),
        "fault_counts": dict(Counter(finding.fault.kind for finding in faults)),
        "note_counts": dict(Counter(finding.fault.kind for finding in notes)),
        "faults": [describe(finding) for finding in faults],
        "notes": [describe(finding) for finding in notes],
    }


def _print_summary(report: dict[str, Any]) -> None:
    print(f"{report['records']} records checked, {report['faulty_records']} of them with a fault")
    for title, counts in (("fault", report["fault_counts"]), ("note", report["note_counts"])):
        for kind, count in sorted(counts.items()):
            print(f"  {title} {kind}: {count}")
    if not report["tokens_checked"]:
        print("  tokens were not counted; name a model with --model_name_or_path")


# ---- what is written ----


def write_clean(records: RecordTable, bad: set[int], path: Path) -> None:
    """Write the records that are not in `bad`, each as it stood: JSON lines for .jsonl, else a JSON list."""
    good = (records.text(index) for index in range(len(records)) if index not in bad)
    if path.suffix == ".jsonl":
        _write(path, (json.dumps(json.loads(text), ensure_ascii=False) + "\n" for text in good))
    else:
        _write(path, _as_list(good))


def _as_list(texts: Iterator[str]) -> Iterator[str]:
    yield "["
    for number, text in enumerate(texts):
        yield (",\n" if number else "\n") + text
    yield "\n]\n"


def _write(path: Path, parts: Iterable[str], flag: str = "--fix") -> None:
    """Write a file whole or not at all."""
    try:
        with (
            atomic_file(path) as scratch,
            # JSON has escapes for half characters, UTF-8 has not
            scratch.open("w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.writelines(parts)
    except OSError as error:
        raise UserError(f"{flag} {shortened(path)} could not be written: {words_of(error)}") from error


def _check_output(flag: str, name: str | None, inputs: set[Path]) -> None:
    """Refuse to write over the data, or over anything else, and where nothing can be written."""
    if name is None:
        return
    path, shown = Path(name), f"{flag} {shortened(name)}"
    if reason := obstacle(name, folder=False):
        raise UserError(f"{shown} cannot be written: {reason}; name another file")
    if path.resolve() in inputs:
        raise UserError(f"{shown} is the data itself; name another file")
    if path.exists():
        raise UserError(f"{shown} exists; delete it or name another file")
    if not path.resolve().parent.is_dir():
        raise UserError(f"the folder of {shown} does not exist; make it first")


def _check_folders(records: RecordTable) -> None:
    for index in records.first_with_images():
        if records.image_folder(index) is None:
            raise UserError(f"{records.name(index)} has an image; name its folder with --image_folder")


def _check_fix(name: str | None, records: RecordTable) -> None:
    if name is None:
        return
    if Path(name).suffix not in (".json", ".jsonl"):
        raise UserError(f"--fix {name}: expected a name that ends in .json or .jsonl")
    folders = {records.image_folder(index) for index in records.first_with_images()}
    if len(folders) > 1:
        raise DataError(
            "--fix writes one file, but the parts of the mixture have image folders of their own; "
            "check and fix them one by one"
        )


if __name__ == "__main__":
    run_program(main)
