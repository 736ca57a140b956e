"""The Docker file, read instruction by instruction: what it copies is there, and what it promises holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SERVE = ROOT / "tests" / "serve"


class Instruction(NamedTuple):
    """A word in capitals and the rest of its line, continued lines joined."""

    name: str
    value: str


def read(text: str) -> list[Instruction]:
    """Return the instructions of a Docker file."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [Instruction(*line.strip().split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


FILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = read(FILE)


def values(name: str) -> list[str]:
    return [one.value for one in INSTRUCTIONS if one.name == name]


def test_every_instruction_is_known_and_needed() -> None:
    known = {"ARG", "FROM", "SHELL", "RUN", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE"}
    assert {one.name for one in INSTRUCTIONS} == known | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}  # no ADD
    assert [one.name for one in INSTRUCTIONS[:2]] == ["ARG", "FROM"]


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    kept = [one[1:] for one in (ROOT / ".dockerignore").read_text().splitlines() if one.startswith("!")]
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    copied = [word for one in values("COPY") if "--from" not in one for word in one.split()[:-1]]
    assert sorted(copied) == sorted(kept)
    for name in copied:
        assert (ROOT / name).exists(), name
    stages = re.findall(r" AS (\w+)", FILE)
    assert [re.findall(r"--from=(\w+)", one) for one in values("COPY") if "--from" in one] == [stages]


def test_both_bases_are_pinned_to_a_version() -> None:
    bases = re.findall(r"BASE=(\S+)", FILE)
    assert len(bases) == 2 and all(re.fullmatch(r"[\w/]+:\d+\.\d+\.\d+-[\w.-]+", one) for one in bases)
    assert all(one.startswith("${BASE}") for one in values("FROM"))
    from_page = re.findall(r"BASE=(\S+)", (ROOT / "docs" / "serving.md").read_text())
    assert from_page == [one for one in bases if "cuda" in one]


def test_it_runs_as_a_user_without_rights_and_holds_no_key() -> None:
    assert values("USER") == ["10001:10001"]
    names = [one.name for one in INSTRUCTIONS]
    assert names.index("USER") < names.index("ENTRYPOINT") and "root" not in FILE
    assert not any(
        re.search("KEY|TOKEN|SECRET", one.value) for one in INSTRUCTIONS if one.name in ("ENV", "ARG")
    )


def test_packages_are_those_of_the_constraints() -> None:
    for one in values("RUN"):
        for command in re.findall(r"pip install [^&]*", one):
            assert "constraints.txt" in command and "--no-cache-dir" in command
        for command in re.findall(r"apt-get install [^&]*", one):
            assert "--no-install-recommends" in command and "rm -rf /var/lib/apt/lists" in one
    pinned = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert len(pinned) == 1 and ";" not in pinned[0]  # what `grep` finds is one requirement


def test_the_program_takes_the_flags_and_asks_for_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.serve import openai_api
    from llava.utils import UserError

    (entry,), (more,) = values("ENTRYPOINT"), values("CMD")
    words = [*json.loads(entry), *json.loads(more)]
    assert words[:3] == ["python", "-m", "llava.serve.openai_api"]
    args = openai_api.build_parser().parse_args(words[3:])
    assert (args.host, str(args.port), args.model_path) == ("0.0.0.0", values("EXPOSE")[0], "/model")
    monkeypatch.delenv("LLAVA_API_KEY", raising=False)
    with pytest.raises(UserError, match="which needs a key"):
        openai_api.main(words[3:])


def test_the_health_check_tells_a_server_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SERVE))
    from fake_engine import FakeEngine, settings
    from running import running

    from llava.serve.openai.app import create_app

    (check,) = values("HEALTHCHECK")
    program, *words = json.loads(check.partition("CMD ")[2])
    assert program == "python" and words[0] == "-c"
    key = "correct-horse-battery"
    engine = FakeEngine()

    def healthy(url: str, given: str) -> bool:
        code = words[1].replace("http://127.0.0.1:8000", url)
        environment = {**os.environ, "LLAVA_API_KEY": given}
        return (
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0
        )

    with running(create_app(engine, settings(api_key=key))) as url:
        assert healthy(url, key) and not healthy(url, "another-key-of-it")
        engine.alive = False
        assert not healthy(url, key)
    assert not healthy(url, key)


def test_reading_joins_lines_and_leaves_comments_out() -> None:
    assert read("# a\nRUN a && \\\n  b\n\nUSER x\n") == [
        Instruction("RUN", "a &&    b"),
        Instruction("USER", "x"),
    ]
