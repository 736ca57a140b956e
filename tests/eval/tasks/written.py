"""Small files in the real format of each benchmark: the originals, and the question file of the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.eval.tasks.base import Ask, Record, Report, Said, Task, TaskData
from llava.eval.tasks.registry import task_named

SHORT = "\nAnswer the question using a single word or phrase."
Written = Callable[[Path], None]


def write(path: Path, content: Any) -> None:
    """Write JSON, or JSON lines for a list in a .jsonl (and for POPE's files), or text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


@dataclass(frozen=True)
class Example:
    """A benchmark of a few questions.

    originals, reference: name of a file below the task's folder -> content. right: a right answer to each
    question, in order. score: that of right answers (None: unpublished). annotation: the file whose absence
    is told. answer: the name of the answer in a record.
    """

    task: str
    originals: dict[str, Any]
    right: list[str]
    reference: dict[str, Any] = field(default_factory=dict)
    score: float | None = 100.0
    split: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    annotation: str = "annotation-file"
    build: Callable[[Path], None] | None = None
    answer: str = "text"

    def __str__(self) -> str:
        return "-".join([self.task, *([self.split] if self.split else []), *self.options])

    def strayed(self, record: Record, name: str) -> Record:
        """Return a record as if it belonged to another question."""
        named = "img_path" if "img_path" in record else "question_id"
        return record | {named: name, "prompt": name}

    def place(self, folder: Path, *, reference: bool = False) -> TaskData:
        """Write the originals, or those and the reference's question file, and return where they are."""
        for name, content in (self.originals | (self.reference if reference else {})).items():
            write(folder / name, content)
        if self.build:
            self.build(folder)
        return TaskData(folder, split=self.split, options=self.options)

    def the_task(self) -> Task:
        return task_named(self.task)


def record(task: Task, ask: Ask, text: str) -> Record:
    """Return the record of an answer as it comes back from a file."""
    back: Record = json.loads(json.dumps(task.record(ask, Said(text, "tiny", "id"))))
    return back


def answers(example: Example, data: TaskData, texts: list[str] | None = None) -> list[Record]:
    """Return records of answers to all questions, the right ones if none are given."""
    task = example.the_task()
    asks = list(task.asks(data))
    texts = example.right if texts is None else texts
    assert len(texts) == len(asks)
    return [record(task, ask, text) for ask, text in zip(asks, texts, strict=True)]


def scored(example: Example, data: TaskData, texts: list[str] | None = None) -> Report:
    """Return the report on these answers."""
    return example.the_task().report(answers(example, data, texts), data)


def scores_as(example: Example, report: Report) -> bool:
    """Tell whether a report has the score of right answers."""
    if example.score is None:
        return report.scores == () and ("not published" in report.notes[-1] or "CIDEr" in report.notes[-1])
    return abs(report.scores[0].value - example.score) < 1e-9
