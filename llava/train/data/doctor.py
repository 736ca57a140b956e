"""The data doctor's work: every record is checked, in several processes; findings are printed and written."""

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

from llava.atomic import atomic_file, obstacle, words_of
from llava.train.data.check_settings import CheckSettings
from llava.train.data.image_folders import check_folder, kind_of_media, known_names, media_folder
from llava.train.data.sources import find_sources
from llava.train.data.table import RecordTable
from llava.train.data.validation import Finding, check_range, find_duplicates, open_all
from llava.train.records import DataError
from llava.utils import UserError, shortened

CHUNK = 64  # records that a process checks at a time
RECORDS_PER_PROCESS = 512  # fewer are not worth another process
LINES_PER_KIND = 20  # of the same fault; --json has all
EXIT_FAULTS = 1


def check(args: argparse.Namespace) -> None:
    """Check, report and end with an exit code. args: of check_data. Raises UserError."""
    names = {field.name for field in fields(CheckSettings)}
    settings = CheckSettings(**{name: value for name, value in vars(args).items() if name in names})
    sources = {one.resolve() for source in find_sources(args.data_path) for one in source.files}
    for flag, output in (("--fix", args.fix), ("--json", args.json)):
        _check_output(flag, output, sources)
    records = open_all(settings)
    for index in records.first_with_images():
        named, kind = known_names(records, index), kind_of_media(records[index])
        check_folder(media_folder(records, index), named, records.name(index), kind)
    _check_fix(args.fix, records)

    findings = []
    printed: Counter[str] = Counter()
    for finding in find_all(settings, records, args.workers):
        findings.append(finding)
        if not finding.is_note:
            printed[finding.fault.kind] += 1
            _print_fault(records, finding, printed[finding.fault.kind], args.json)
    findings += [Finding(index, note, is_note=True) for index, note in find_duplicates(records)]
    report = summarize(settings, records, findings)
    _print_summary(report, records, findings)
    if args.json:
        _write(Path(args.json), [json.dumps(report, indent=1, ensure_ascii=False)], "--json")
    if args.fix:
        bad = {finding.index for finding in findings if not finding.is_note}
        changed = write_clean(records, bad, Path(args.fix))
        print(f"{len(records) - len(bad)} records without a fault written to {args.fix}")
        if changed:
            print(f"  in {changed} of them NaN or Infinity became null")
    if report["faults"]:
        sys.exit(EXIT_FAULTS)


def _print_fault(records: RecordTable, finding: Finding, number: int, json_file: str | None) -> None:
    """Print a fault, or once that there are more of its kind than are shown."""
    if number <= LINES_PER_KIND:
        print(f"{records.name(finding.index)}: {finding.fault.kind}: {shortened(finding.fault.reason)}")
    elif number == LINES_PER_KIND + 1:
        where = json_file or "--json REPORT"
        print(f"more of {finding.fault.kind} are counted, not shown; {where} has all")


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
        "left_out": records.left_out,
        "no_images": bool(settings.vision_tower or settings.image_folder) and not records.with_images.any(),
        "faulty_records": len({finding.index for finding in faults}),
        "fault_counts": dict(Counter(finding.fault.kind for finding in faults)),
        "note_counts": dict(Counter(finding.fault.kind for finding in notes)),
        "faults": [describe(finding) for finding in faults],
        "notes": [describe(finding) for finding in notes],
    }


def _print_summary(report: dict[str, Any], records: RecordTable, findings: Sequence[Finding]) -> None:
    print(f"{report['records']} records checked, {report['faulty_records']} of them with a fault")
    if report["left_out"]:
        print(f"  {report['left_out']} records were not checked; sampling_strategy leaves them out")
    for kind, count in sorted(report["fault_counts"].items()):
        print(f"  fault {kind}: {count}")
    first: dict[str, Finding] = {}
    for finding in findings:
        if finding.is_note:
            first.setdefault(finding.fault.kind, finding)
    for kind, count in sorted(report["note_counts"].items()):
        example = f"{records.name(first[kind].index)}: {shortened(first[kind].fault.reason)}"
        print(f"  note {kind}: {count}, the first is {example}")
    if report["no_images"]:
        print(
            "  no record has an image, though --vision_tower or --image_folder is given; is 'image' its key?"
        )
    if not report["tokens_checked"]:
        print("  tokens were not counted; name a model with --model_name_or_path")


# ---- what is written ----


def write_clean(records: RecordTable, bad: set[int], path: Path) -> int:
    """Write the records that are not in `bad`, each as it stood: JSON lines for .jsonl, else a JSON list.

    NaN and Infinity, which are no JSON, become null; returns in how many records.
    """
    changed = 0

    def texts() -> Iterator[str]:
        nonlocal changed
        for index in range(len(records)):
            if index in bad:
                continue
            text = records.text(index)
            value = json.loads(text)
            clean = without_nan(value)
            changed += clean is not value
            if clean is not value or path.suffix == ".jsonl":
                text = json.dumps(clean, ensure_ascii=False, allow_nan=False)
            yield text

    _write(path, (text + "\n" for text in texts()) if path.suffix == ".jsonl" else _as_list(texts()))
    return changed


def without_nan(value: object) -> Any:
    """Return a JSON value with null in place of NaN and Infinity; the same object when it has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        cleaned = {key: without_nan(one) for key, one in value.items()}
        return cleaned if any(cleaned[key] is not one for key, one in value.items()) else value
    if isinstance(value, list):
        items = [without_nan(one) for one in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


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


def _check_fix(name: str | None, records: RecordTable) -> None:
    if name is None:
        return
    if Path(name).suffix not in (".json", ".jsonl"):
        raise UserError(f"--fix {name}: expected a name that ends in .json or .jsonl")
    folders = {media_folder(records, index) for index in records.first_with_images()}
    if len(folders) > 1:
        raise DataError(
            "--fix writes one file, but the parts of the mixture have image folders of their own; "
            "check and fix them one by one"
        )
