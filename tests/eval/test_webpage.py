"""The comparison page: its JSON, what is amiss with files, and the page in a browser on two screens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import open_browser
from PIL import Image
from programs import PROGRAMS, start

from llava.eval.generate_webpage_data_from_table import read_jsonl, trim_hanging_lines
from llava.eval.webpage.data import compared, evaluation
from llava.eval.webpage.page import page_of
from llava.utils import UserError

MARKUP = "<script>document.title = 'bad'</script><img src=x onerror=\"document.title='bad'\">&lt;b&gt; </pre>"


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two questions in two categories, answers of three models, reviews of two."""
    Image.new("RGB", (900, 600), (200, 30, 30)).save(tmp_path / "red.png")
    lines(tmp_path / "q.jsonl", [
        {"question_id": 1, "text": "What is it?", "category": "generic", "image": "red.png"},
        {"question_id": 2, "text": f"And {MARKUP}?", "category": f"odd {MARKUP}"},
    ])  # fmt: skip
    for model, text in (("first", "A flag."), ("second", "A wall."), ("third", MARKUP)):
        rows = [
            {
                "question_id": n,
                "text": f"{text} {n}",
                "answer_id": "x",
                "model_id": f"{model}-7b",
                "metadata": {},
            }
            for n in (1, 2)
        ]
        lines(tmp_path / f"{model}.jsonl", rows)
    for model, tail in (("second", "Assistant 1 is right."), ("third", MARKUP)):
        rows = [{"question_id": n, "content": f"8 6.5\n{tail}", "tuple": [8, 6.5]} for n in (1, 2)]
        lines(tmp_path / f"review_{model}.jsonl", rows)
    return tmp_path


def words(table: Path, *models: str, **more: object) -> list[str]:
    found = [
        "--question",
        str(table / "q.jsonl"),
        "--answers",
        *(str(table / f"{one}.jsonl") for one in models),
    ]
    for name, value in more.items():
        found += [
            f"--{name.replace('_', '-')}",
            *(map(str, value) if isinstance(value, list) else [str(value)]),
        ]
    return found


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    with pytest.raises(SystemExit) as ended:
        start(PROGRAMS["webpage"], words, monkeypatch)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_json_has_the_fields_of_the_reference(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = [table / "review_second.jsonl", table / "review_third.jsonl"]
    line = words(table, "first", "second", "third", reviews=reviews, output=table / "webpage/data.json")
    assert run(line, monkeypatch) == 0
    data = json.loads((table / "webpage/data.json").read_text())
    assert list(data) == ["questions", "models"] and data["models"] == ["second-7b", "third-7b"]
    first = data["questions"][0]
    assert list(first) == ["id", "category", "question", "answers", "evaluations", "scores", "image"]
    assert (first["id"], first["category"], first["question"]) == (1, "generic", "What is it?")
    assert first["answers"] == {"first-7b": "A flag. 1", "second-7b": "A wall. 1", "third-7b": f"{MARKUP} 1"}
    assert first["evaluations"] == {"second-7b": "**Assistant 1** is right.", "third-7b": MARKUP}
    assert first["scores"] == {"second-7b": [8, 6.5], "third-7b": [8, 6.5]}
    assert (table / "webpage/index.html").exists()


@pytest.mark.parametrize(
    "review, text",
    [
        ("8 9\nGood.", "Good."),
        (
            "8, 9.5\n\nAssistant 2 wins, Assistant 1 does not.",
            "**Assistant 2** wins, **Assistant 1** does not.",
        ),
        ("No scores.\nAt all.", "No scores.\nAt all."),
        ("8 9", ""),
        ("**Assistant 1** again", "**Assistant 1** again"),
    ],
)
def test_scores_are_no_part_of_a_review(review: str, text: str) -> None:
    assert evaluation(review) == text


def test_what_is_amiss_is_named_and_shown(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question_id": "1", "text": "old"},
        {"question_id": "1", "text": "  "},
        {"question_id": 9, "text": "x"},
    ]
    path = lines(table / "odd.jsonl", rows)
    path.write_text(path.read_text() + '{"question_id": 2, "te')
    line = words(table, "first", "odd", names=["A", "B"], output=table / "data.json")
    assert run(line, monkeypatch) == 1
    told = capsys.readouterr().err
    assert "odd.jsonl has no answer to 2 (1 in all)" in told and "answers what is not asked: 9" in told
    assert "answers more than once (the last one is shown): 1" in told
    assert "odd.jsonl is broken: line 4 is no JSON object" in told
    page = (table / "index.html").read_text()
    assert "no answer" in page and "an empty answer" in page and "old" not in page


@pytest.mark.parametrize(
    "models, more, message",
    [
        (["first"], {"reviews": ["r"]}, "--reviews names 1 files, and --answers 1"),
        (["first", "second"], {"names": ["A"]}, "--names has 1 names for 2 files"),
        (["first"], {"output": "index.html"}, "--output is index.html"),
        (["first"], {"output": "q.jsonl"}, "--output is q.jsonl, which is --question as well"),
        (["first", "second"], {"output": "second.jsonl"}, "which is file 2 of --answers as well"),
        (["first"], {"image_folder": "none"}, "--image-folder none is no folder"),
        (["other"], {}, "none of its 1 answers is to one of the 2 questions"),
        (["empty"], {}, "is empty; expected one JSON object a line"),
        (["absent"], {}, "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models: list[str],
    more: dict[str, object], message: str,
) -> None:  # fmt: skip
    lines(table / "other.jsonl", [{"question_id": 7, "text": "x"}])
    (table / "empty.jsonl").write_text("\n")
    monkeypatch.chdir(table)
    assert run(words(table, *models, **more), monkeypatch) == 2
    assert message in capsys.readouterr().err
    assert not (table / "webpage").exists() and not (table / "index.html").exists()


def test_models_of_one_name_are_told_apart(table: Path) -> None:
    shutil.copy(table / "first.jsonl", table / "again.jsonl")
    found = compared(table / "q.jsonl", [table / "first.jsonl", table / "again.jsonl"], [])
    assert list(found.questions[0]["answers"]) == ["first-7b (1)", "first-7b (2)"]


def test_functions_of_the_reference(table: Path) -> None:
    assert [one["question_id"] for one in read_jsonl(str(table / "q.jsonl"))] == [1, 2]
    assert sorted(read_jsonl(str(table / "q.jsonl"), key="question_id")) == [1, 2]
    assert trim_hanging_lines("8 9\n\nGood.\nBad. ", 1) == "Good.\nBad." and trim_hanging_lines("a", 3) == ""


def test_json_of_another_form_is_refused() -> None:
    with pytest.raises(UserError, match="no list 'questions'"):
        page_of({"models": []})


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from open_browser()


@pytest.mark.slow
def test_a_browser_shows_answers_side_by_side_and_markup_as_text(table: Path, browser: Any) -> None:
    reviews = [table / "review_second.jsonl", table / "review_third.jsonl"]
    answers = [table / f"{one}.jsonl" for one in ("first", "second", "third")]
    path = table / "index.html"
    path.write_text(page_of(compared(table / "q.jsonl", answers, reviews).as_json(), table))
    for width, columns in ((1280, 3), (390, 1)):
        page = browser.new_page(viewport={"width": width, "height": 900})
        left: list[str] = []
        page.on("request", lambda one, left=left: left.append(one.url) if one.url[:5] != "data:" else None)
        page.goto(path.as_uri())
        assert page.title() == "Answers of first-7b, second-7b, third-7b" and left == [path.as_uri()]
        assert page.locator("script").count() == 0 and page.locator("img").count() == 1  # the question's own
        assert page.locator("img").evaluate("one => one.complete && one.naturalWidth") == 448
        boxes = [
            one.bounding_box() for one in page.locator("article >> nth=0").locator(".answers section").all()
        ]
        assert len({round(box["x"]) for box in boxes}) == columns and len(boxes) == 3
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator("article >> nth=1").locator(".answers pre >> nth=2").inner_text() == f"{MARKUP} 2"
        review = page.locator("details >> nth=0")
        assert not review.locator("pre").is_visible() and "8 to 6.5" in review.locator("summary").inner_text()
        review.locator("summary").click()
        assert review.locator("pre").is_visible() and review.locator("strong").inner_text() == "Assistant 1"
        page.locator("nav a >> nth=1").click()
        assert page.url.endswith("#c1") and page.locator("#c1").inner_text() == f"odd {MARKUP}"
        page.close()
