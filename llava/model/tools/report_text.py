"""What `python -m llava.model.inspect` prints: the report on a checkpoint, for a person or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from llava.model.checkpoints.checksums import INDEX_FILE, damaged_files, read_list
from llava.model.tools.inspection import Part, Report, inspect_checkpoint

SHOWN = 8  # names of each list of weights
EXEMPT_SHOWN = 2  # where nothing is wrong


def inspected(checkpoint: str, base: str | None, *, verify: bool) -> Report:
    """Return the report on a checkpoint; `verify` also reads all its files."""
    report = inspect_checkpoint(checkpoint, base)
    return verified(report) if verify else report


def written(report: Report, *, as_json: bool) -> str:
    """Return a report as text, or as JSON with the names of all weights."""
    if as_json:
        return json.dumps({**dataclasses.asdict(report), "can_chat": report.can_chat}, indent=2)
    return "\n".join(lines(report))


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
    for reason, names in report.exempt.items():
        yield f"  {'exempt:':18} {reason}: {_some(names, EXEMPT_SHOWN)}"
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


def _some(names: list[str], shown: int = SHOWN) -> str:
    more = f" and {len(names) - shown} more (--json lists all)" if len(names) > shown else ""
    return f"{len(names)}: {', '.join(names[:shown])}{more}" if names else ""
