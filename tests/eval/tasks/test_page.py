"""docs/evaluation_tasks.md says of every benchmark what the registry and the published numbers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.eval.suites.published import SUITES, published_of
from llava.eval.tasks import prompts
from llava.eval.tasks.registry import TASKS, task_named

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "evaluation_tasks.md").read_text()
ROWS = {
    line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `") and "llava.eval" in line
}


def test_the_table_has_a_row_for_each_task_in_their_order() -> None:
    assert list(ROWS) == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_says_what_the_task_says(name: str) -> None:
    task, row = task_named(name), ROWS[name]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert cells[1] == task.title
    assert cells[2].startswith(f"`{task.folder or task.name}`: ")
    assert cells[3] == f"`python -m llava.eval {name}`"
    for one in task.data:
        if "eval.zip" not in one.url:  # which the page names once
            assert one.url.split(" ")[0] in cells[2]
            assert one.licence in cells[2]
    known = [published_of(f"llava-v1.5-{size}") for size in ("7b", "13b")]
    numbers = [f"{one.scores[name]:g}" for one in known if one and name in one.scores]
    told = cells[-1].strip(" |").replace(" (judged)", "")
    assert told == (" / ".join(numbers) or "-")


@pytest.mark.parametrize(
    "line",
    [prompts.SHORT, prompts.LETTER, prompts.UNANSWERABLE, prompts.OCR, prompts.CAPTION, prompts.YES_NO],
)
def test_the_page_has_the_lines_of_prompts_letter_by_letter(line: str) -> None:
    assert f"`{line}" in PAGE


@pytest.mark.parametrize("suite", SUITES)
def test_the_tasks_of_a_suite_are_tasks(suite: str) -> None:
    assert not set(SUITES[suite]) - set(TASKS)
