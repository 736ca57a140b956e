"""Benchmark of large training data: first and second start, memory of loader workers, against json.load.

Writes a synthetic file of the size of LLaVA-1.5's finetuning mixture (665,298 records, 0.7 GB) to a temporary
folder, measures in fresh processes, deletes it and prints JSON:

    python scripts/bench/data.py [--records 665298] [--folder /a/disk/with/space]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

RECORDS = 665_298
ROUNDS = 5  # of a record; with the words of `write_records` this makes about 1,000 bytes
STEPS = 40
BATCH = 16


def write_records(path: Path, count: int) -> None:
    """Write `count` records of about 1,000 bytes; every sixteenth is a text."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(4000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = []
            for turn in range(ROUNDS):
                question = " ".join(rng.choices(words, k=8))
                if turn == 0 and number % 16:
                    question = f"<image>\n{question}"
                turns.append({"from": "human", "value": question})
                turns.append({"from": "gpt", "value": " ".join(rng.choices(words, k=11))})
            record: dict[str, Any] = {"id": f"{number:012d}"}
            if number % 16:
                record["image"] = f"coco/train2017/{number:012d}.jpg"
            record["conversations"] = turns
            file.write(("[" if number == 0 else ", ") + json.dumps(record))
        file.write("]")


def memory(process: psutil.Process) -> dict[str, float]:
    """Memory of a process in MB: `private` is its own; `uss` and `pss` count mapped files as well."""
    totals = {"Private_Dirty": 0, "Private_Clean": 0, "Pss": 0, "Rss": 0}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in totals:
            totals[name] = int(rest.split()[0])  # kB
    private, clean = totals["Private_Dirty"], totals["Private_Clean"]
    found = {"private": private, "uss": private + clean, "pss": totals["Pss"], "rss": totals["Rss"]}
    return {name: round(value * 1024 / 1e6, 1) for name, value in found.items()}


# ---- what is measured, each in a process of its own ----


def measure_json(path: Path) -> dict[str, Any]:
    """Read the file as the reference does: json.load, and lengths as lists."""
    begin = time.perf_counter()
    with path.open() as file:
        records = json.load(file)
    loaded = time.perf_counter() - begin
    lengths = [
        sum(len(turn["value"].split()) for turn in record["conversations"])
        + (128 if "image" in record else 0)
        for record in records
    ]
    return {
        "load_s": round(loaded, 2),
        "with_lengths_s": round(time.perf_counter() - begin, 2),
        "cpu_s": round(time.process_time(), 2),
        "records": len(records),
        "words": sum(lengths),
        "memory_mb": memory(psutil.Process()),
    }


def measure_table(path: Path, workers: int) -> dict[str, Any]:
    """Open the file as training does; with workers, read some batches through a DataLoader."""
    from llava.train.data.table import load_records

    before = memory(psutil.Process())
    begin, cpu = time.perf_counter(), time.process_time()
    records = load_records(path)
    lengths = records.words + 128 * records.with_images
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    result = {
        "start_s": round(seconds, 3),
        "start_cpu_s": round(cpu, 3),
        "records": len(records),
        "words": int(lengths.sum()),
        "before_mb": before,
        "memory_mb": memory(psutil.Process()),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
    }
    if workers:
        result |= measure_workers(records, workers)
    begin = time.perf_counter()
    order = random.Random(0).sample(range(len(records)), min(20_000, len(records)))
    for index in order:
        records[index]
    result["read_us_per_record"] = round((time.perf_counter() - begin) / len(order) * 1e6, 1)
    result["after_reading_mb"] = memory(psutil.Process())
    return result


def measure_workers(records: Any, workers: int) -> dict[str, Any]:
    """Read random batches with loader workers; memory of each worker at the beginning and at the end."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        records, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=len, prefetch_factor=2
    )
    stream = iter(loader)
    next(stream)
    children = psutil.Process().children()
    first = [memory(child) for child in children]
    for _ in range(STEPS * workers):
        next(stream)
    return {"worker_mb_first": first, "worker_mb_last": [memory(child) for child in children]}


def run(arguments: list[str]) -> dict[str, Any]:
    """Run this program again for one measurement; adds the wall time of the whole process."""
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, __file__, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return {**json.loads(out), "process_s": round(time.perf_counter() - begin, 2)}


def main() -> None:
    """Write the file, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--folder", help="where the temporary file goes")
    parser.add_argument("--measure", choices=("json", "table"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        done = measure_json(args.path) if args.measure == "json" else measure_table(args.path, args.workers)
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory(prefix="llava-bench-", dir=args.folder) as folder:
        path = Path(folder) / "records.json"
        write_records(path, args.records)
        table = ["--measure", "table", "--path", str(path)]
        result = {
            "file_mb": round(path.stat().st_size / 1e6, 1),
            "json_load": run(["--measure", "json", "--path", str(path)]),
            "first_start": run(table),
            "second_start": run(table),
            "second_start_4_workers": run([*table, "--workers", "4"]),
            "table_mb": round(sum(one.stat().st_size for one in path.parent.rglob("*.arrow")) / 1e6, 1),
        }
    same = {result[name]["words"] for name in ("json_load", "first_start", "second_start")}
    assert len(same) == 1, "the table does not count the words that json.load does"
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
