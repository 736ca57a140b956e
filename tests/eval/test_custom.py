"""Question files of one's own: every metric, images, groups, breakdowns, and lines that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_judge import fake_judge
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.eval.run.command import main
from llava.eval.tasks.base import Report, Said, TaskData
from llava.eval.tasks.custom import METRICS, Custom, exact, vqa
from llava.utils import UserError

LINES: list[dict[str, Any]] = [
    {"question_id": "a", "image": "1.png", "text": "What is it?", "answer": ["dog", "a dog"]},
    {"question_id": "b", "images": ["1.png", "2.png"], "text": "<image>\n<image>\nHow many?", "answer": 2},
    {"id": 7, "question": "Hello?", "answer": "hello there", "group": "g"},
]
for line, kind in zip(LINES, ("animal", ["number", "animal"], "chat"), strict=True):
    line["kind"] = kind


def place(root: Path, lines: Sequence[Any], **options: str) -> TaskData:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    (root / "my.jsonl").write_text(text)
    return TaskData(root, {"question-file": root / "my.jsonl"}, options=options)


def report(root: Path, lines: Sequence[Any], said: Sequence[str], **options: str) -> Report:
    data, task = place(root, lines, **options), Custom()
    records = [
        task.record(ask, Said(text, "model", "i")) for ask, text in zip(task.asks(data), said, strict=True)
    ]
    return task.report(records, data)


def test_questions_with_one_image_with_several_and_without(tmp_path: Path) -> None:
    first, second, third = Custom().asks(place(tmp_path, LINES))
    assert (first.id, second.id, third.id) == ("a", "b", 7)
    assert first.images == (tmp_path / "1.png",) and second.images == (tmp_path / "1.png", tmp_path / "2.png")
    assert (second.text, third.text, third.images) == ("How many?", "Hello?", ())
    assert (first.group, second.group, third.group) == ("1.png", "1.png", "g")


def test_images_of_another_folder_and_of_the_internet(tmp_path: Path) -> None:
    lines = [{"image": "1.png", "text": "?"}, {"image": "https://a/b.png", "text": "?"}]
    data = place(tmp_path, lines)
    data = TaskData(tmp_path, {**data.files, "image-folder": tmp_path / "images"})
    first, second = Custom().asks(data)
    assert first.images == (tmp_path / "images/1.png",) and second.images == ("https://a/b.png",)
    assert (first.id, second.id) == (1, 2)


SAID = ["Dog.", "two", "Hello, you there"]
EXPECTED = {"exact": 1 / 3, "vqa": 2 / 3, "anls": (0.75 + 11 / 16) / 3, "f1": (1 + 0 + 0.8) / 3}


@pytest.mark.parametrize("metric", EXPECTED)
def test_metrics_of_texts(metric: str, tmp_path: Path) -> None:
    found = report(tmp_path, LINES, SAID, metric=metric, by="kind")
    (score,) = found.scores
    assert score.name == metric and score.n == 3 and score.stderr is not None
    assert score.value == pytest.approx(100 * EXPECTED[metric])
    assert set(found.tables[f"{metric} by kind"]) == {"animal", "chat", "number"}
    assert any("fewer than 3 answers" in one for one in found.notes) == (metric == "vqa")


def test_bleu_is_of_the_corpus(tmp_path: Path) -> None:
    lines = [{"text": "?", "answer": "the cat sat on the mat today"}, {"text": "?", "answer": "a b c d e"}]
    found = report(tmp_path, lines, ["the cat sat on the mat", "a b c d e"], metric="bleu")
    assert found.scores[0].name == "BLEU-4"
    assert found.scores[0].value == pytest.approx(100 * 2.718281828459045 ** (1 - 12 / 11))


def test_choices_are_shown_and_read(tmp_path: Path) -> None:
    choices = ["a cat", "a dog", "a bus"]
    lines = [{"text": "What?", "choices": choices, "answer": one} for one in ("B", "a dog", 1, ["B", 2])]
    data = place(tmp_path, lines)
    ask = next(iter(Custom().asks(data)))
    assert ask.text == (
        "What?\nA. a cat\nB. a dog\nC. a bus\n"
        "Answer with the option's letter from the given choices directly."
    )
    found = report(tmp_path, lines, ["B", "It is a dog", "A", "no idea"], metric="choice")
    assert found.scores[0].value == 50.0 and found.unparsable == 1
    assert (found.scores[0].low, found.scores[0].high) == (50.0, 75.0)


def test_a_judge_grades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with fake_judge(
        lambda text, before: "0.5" if "Dog." in text else "nothing" if "two" in text else "1"
    ) as fake:
        options = {"metric": "judge", "judge-model": "j", "judge-base-url": fake.base_url, "by": "kind"}
        found = report(tmp_path, LINES, SAID, **options)
    (score,) = found.scores
    assert (score.kind, score.value, score.n) == ("judged", 75.0, 2) and found.unparsable == 1
    assert found.tables["judged score by kind"] == {"animal": 50.0, "chat": 100.0}
    assert any("dog\n<OR>\na dog" in fake.content(index) for index in range(len(fake.requests)))


def test_without_a_judge_what_it_is_asked_is_written(tmp_path: Path) -> None:
    found = report(tmp_path, LINES, SAID, metric="judge")
    assert not found.scores and len(found.written[0].read_text().splitlines()) == 3


def test_a_judged_result_is_not_replaced_by_one_that_nobody_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data, task = place(tmp_path, LINES), Custom()
    records = [task.record(ask, Said(one, "m", "i")) for ask, one in zip(task.asks(data), SAID, strict=True)]
    answers = tmp_path / "m.jsonl"
    answers.write_text("".join(json.dumps(one) + "\n" for one in records))
    flags = ["score", "custom", "--question-file", str(tmp_path / "my.jsonl"), "--answers", str(answers)]
    flags += ["--metric", "judge"]
    with fake_judge(lambda text, before: "1") as fake:
        main([*flags, "--judge-model", "j", "--judge-base-url", fake.base_url])
    judged = (tmp_path / "m.result.json").read_text()
    capsys.readouterr()
    main(flags)
    told = capsys.readouterr().out
    assert (tmp_path / "m.result.json").read_text() == judged
    assert "stays as it is: " in told and "now nobody did" in told and "written for a judge: " in told
    main([*flags, "--output", str(tmp_path / "other.json")])
    assert json.loads((tmp_path / "other.json").read_text()).get("judge") is None


def test_groups_widen_the_error(tmp_path: Path) -> None:
    lines = [{"text": f"{number}?", "answer": "yes", "group": number // 4} for number in range(16)]
    said = ["yes"] * 8 + ["no"] * 8
    alone = [{**one, "group": number} for number, one in enumerate(lines)]
    grouped, single = (report(tmp_path, some, said).scores[0] for some in (lines, alone))
    assert grouped.value == single.value == 50.0
    assert grouped.stderr and single.stderr and grouped.stderr > 1.9 * single.stderr


BAD = {
    "no text": ([{"answer": "x"}], "question 1 has no text"),
    "no answer": (
        [{"text": "?"}, {"text": "!", "answer": "x"}],
        r"question 1 has no answer \(1 of 2 lack one\)",
    ),
    "answer of another kind": (
        [{"text": "?", "answer": {"a": 1}}],
        "'answer' is .*expected a text, or a list",
    ),
    "image of another kind": ([{"text": "?", "image": 3}], "'image' is 3"),
    "an id that is a list": ([{"id": [1], "text": "?"}], r"the id is \[1\]"),
    "two ids": ([{"id": 1, "text": "?"}, {"id": 1, "text": "!"}], "two questions have the id 1"),
    "too many tokens": (
        [{"text": "<image> <image>?", "image": "a"}],
        "has 2 <image> in its text and 1 images",
    ),
    "half a line": ([{"text": "?"}, '{"text": '], "1 of 2 lines are no JSON, the first is line 2"),
    "a list in a line": (["[1]", "[2]"], "is no JSON|is a list"),
    "nothing": ([], "holds no questions"),
    "one choice": ([{"text": "?", "choices": ["a"], "answer": 0}], "has 1 choices; expected 2 to 26"),
    "no such choice": ([{"text": "?", "choices": ["a", "b"], "answer": "C"}], "'C' is none of the choices"),
}


@pytest.mark.parametrize("case", BAD)
def test_lines_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    lines, says = BAD[case]
    with pytest.raises(UserError, match=says):
        report(tmp_path, lines, ["x"] * len(lines))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metric": "choice"}, "has no 'choices'; --metric choice"),
        ({"by": "colour"}, "no 'colour' for --by; it has"),
    ],
)
def test_flags_that_do_not_fit(options: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        report(tmp_path, LINES, SAID, **options)


def test_the_program_scores_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place(tmp_path, LINES)
    rows = [{"question_id": one, "text": text} for one, text in zip(("a", "b", 7), SAID, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "score",
        "custom",
        "--question-file",
        str(tmp_path / "my.jsonl"),
        "--answers",
        str(tmp_path / "a.jsonl"),
    ]
    main([*words, "--metric", "f1", "--by", "kind"])
    assert "60.00 %" in capsys.readouterr().out
    result = json.loads((tmp_path / "a.result.json").read_text())
    assert result["tables"]["f1 by kind"]["chat"] == pytest.approx(80)
    with pytest.raises(UserError, match="metric.*invalid choice: 'rouge'"):
        main([*words, "--metric", "rouge"])


# ---- its own rules ----


WORDS = st.sampled_from(["red", "blue", "dog", "cat", "2", "two"])


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4).map(" ".join))
def test_an_answer_is_right_whatever_its_case_blanks_and_period(text: str) -> None:
    assert exact(f" {text.upper()}. ", ["other", text.replace(" ", "  ")]) == 1
    assert exact(f"{text} not", [text]) == 0
    assert vqa(text, [text]) == 1


def test_known_values() -> None:
    assert vqa("two", ["two"] * 10) == 0  # the official rule makes digits of the prediction alone
    assert vqa("two dogs", ["2 dogs"] * 10) == 1 and vqa("cat", ["cat"] * 2 + ["dog"] * 8) == pytest.approx(
        0.6
    )
    assert set(METRICS) == {"exact", "vqa", "anls", "choice", "bleu", "f1", "judge"}
