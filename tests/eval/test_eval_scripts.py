"""scripts/v1_5/eval/*.sh and sqa_eval_*.sh: what they start, flags that the programs know, joined parts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "v1_5" / "eval"
SCRIPTS = sorted(one.name for one in FOLDER.glob("*.sh") if one.name != "common.sh")
# a Python that writes down how it was called, and leaves a line for each part of the questions
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$(printf '%q ' "$@")" >>"$CALLS"
while [ "$#" -gt 1 ]; do
    if [ "$1" = --answers-file ]; then echo "{\\"part\\": \\"$(basename "$2")\\"}" >"$2"; fi
    if [ "$1" = --chunk-idx ] && [ "$2" = "${FAIL_AT:-none}" ]; then exit 3; fi
    shift
done
"""
REFERENCE = [
    "gqa",
    "llavabench",
    "mmbench",
    "mmbench_cn",
    "mme",
    "mmvet",
    "pope",
    "qbench",
    "qbench_zh",
    "seed",
    "sqa",
    "textvqa",
    "vizwiz",
    "vqav2",
]


def run(script: Path, tmp_path: Path, *flags: str, **more: str) -> tuple[int, list[list[str]]]:
    """Run a script in a folder with a blank in its name; returns exit code and the programs it started."""
    place = tmp_path / "my eval"
    place.mkdir(exist_ok=True)
    python, calls = place / "fake python", place / "calls"
    python.write_text(FAKE)
    python.chmod(0o755)
    told = {
        "PYTHON": str(python),
        "EVAL_DIR": str(place),
        "CALLS": str(calls),
        "MODEL_PATH": "some/model",
        **more,
    }
    done = subprocess.run(
        ["bash", str(script), *flags], cwd=place, env={**os.environ, **told}, capture_output=True, text=True
    )
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, [shlex.split(one) for one in lines]


def test_every_name_of_the_reference_is_there() -> None:
    assert [f"{name}.sh" for name in REFERENCE] == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_starts_programs_with_flags_they_know(name: str, tmp_path: Path) -> None:
    """The first asks, greedy or with the caller's flags behind; the flags of each are in its source."""
    code, calls = run(FOLDER / name, tmp_path, *(["dev"] if "qbench" in name else []), JUDGE="a-judge")
    assert code == 0 and calls
    assert calls[0][:1] == ["-m"] and calls[0][1].startswith("llava.eval.model_vqa")
    for words in calls:
        program = words[1] if words[0] == "-m" else words[0]
        if program == "llava.eval":
            continue  # `score`, whose flags are the task's
        arguments = words[2:] if words[0] == "-m" else words[1:]
        flags = {one for one in arguments if one.startswith("--")}
        target = ["-m", program] if words[0] == "-m" else [program]
        told = subprocess.run(
            [sys.executable, *target, "--help"],
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        ).stdout  # fmt: skip
        unknown = {one for one in flags if one not in told}
        assert not unknown, f"{name} gives {program} {unknown}"


@pytest.mark.parametrize("name", ["gqa.sh", "seed.sh", "vqav2.sh"])
def test_gpus_share_the_questions(name: str, tmp_path: Path) -> None:
    """A part for each GPU, joined in their order; a part that fails ends the script, nothing is joined."""
    code, calls = run(FOLDER / name, tmp_path, CUDA_VISIBLE_DEVICES="4,5,7")
    assert code == 0
    asked = [one for one in calls if one[1] == "llava.eval.model_vqa_loader"]
    assert sorted(one[one.index("--chunk-idx") + 1] for one in asked) == ["0", "1", "2"]
    (whole,) = (tmp_path / "my eval").rglob("merge.jsonl")
    parts = [json.loads(one)["part"] for one in whole.read_text().splitlines()]
    assert parts == [f"3_{k}.jsonl" for k in range(3)]
    whole.unlink()
    code, _ = run(FOLDER / name, tmp_path, CUDA_VISIBLE_DEVICES="4,5,7", FAIL_AT="1")
    assert code == 1 and not whole.exists()


def test_science_qa_in_parts_is_gathered(tmp_path: Path) -> None:
    code, calls = run(ROOT / "scripts" / "sqa_eval_batch.sh", tmp_path, CHUNKS="2")
    assert code == 0 and len(calls) == 2
    code, calls = run(ROOT / "scripts" / "sqa_eval_gather.sh", tmp_path, CHUNKS="2")
    assert code == 0 and calls[-1][1] == "llava.eval.eval_science_qa"
    whole = tmp_path / "my eval" / "scienceqa" / "answers" / "model.jsonl"
    assert [json.loads(one)["part"] for one in whole.read_text().splitlines()] == [
        "model_chunk0.jsonl",
        "model_chunk1.jsonl",
    ]
