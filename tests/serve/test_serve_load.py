"""The servers under load: the short form of scripts/bench/serve_load.py, with a worker that is killed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("serve_load")


@pytest.mark.slow
def test_nothing_is_lost_when_clients_vanish_and_a_worker_is_killed(checkpoints: Path) -> None:
    command = [sys.executable, str(BENCH / "serve_load.py"), "--model-path", "llava-tiny-v1.5"]
    command += ["--clients", "8", "--seconds", "5", "--direct-seconds", "1", "--workers", "1", "--kills", "1"]
    command += ["--max-tokens", "6", "--image-size", "32", "--growth", "50"]
    done = subprocess.run(command, cwd=checkpoints, capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["faults"] == [] and done.returncode == 0, done.stderr
    assert result["lost"] == [] and result["answers"] and result["refused"] and result["vanished"]
    assert set(result["errors"]) <= {"worker_gone", "no_worker"} and result["errors"]
    assert result["left"] == {"workers": [0], "streams": 0.0, "answers_again": True}
    assert set(result["memory"]) == {"controller", "front"} and result["direct"]["tokens_per_second"] > 0


def test_what_is_wrong_is_said(bench: ModuleType) -> None:
    right = {
        "lost": [],
        "answers": 3,
        "left": {"workers": [0, 0], "streams": 0.0, "answers_again": True},
        "memory": bench.growth_of({"front": [100.0] * 9}),
    }
    assert bench.faults(right, 5) == []
    wrong = [
        {"lost": ["stream: status 500, code None"]},
        {"answers": 0},
        {"left": {"workers": [0, None], "streams": 0.0, "answers_again": True}},
        {"left": {"workers": [0, 0], "streams": 1.0, "answers_again": True}},
        {"left": {"workers": [0, 0], "streams": 0.0, "answers_again": False}},
        {"memory": bench.growth_of({"front": [50.0, 50, 50, 100, 100, 100, 106, 106, 106]})},
    ]
    for one in wrong:
        assert len(bench.faults({**right, **one}, 5)) == 1, one


@pytest.mark.parametrize(
    "body, code",
    [
        ({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}, "c"),
        ({"error": {"message": "", "type": "t", "param": None, "code": "c"}}, None),
        ({"error": "m"}, None),
        ({"detail": "m"}, None),
    ],
)
def test_only_errors_in_openais_form_are_typed(bench: ModuleType, body: dict, code: str | None) -> None:
    assert bench.code_of(body) == code
