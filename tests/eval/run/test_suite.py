"""A suite: one load for all tasks, results at once, the table beside published scores, and the images."""

import json
import shutil

import pytest
from PIL import Image

from llava.eval.run import opening
from llava.eval.run.command import main
from llava.eval.suites import suite
from llava.eval.suites.published import BANDS, PUBLISHED, SUITES, published_of
from llava.eval.suites.table import MARK, markdown_of, row_of, text_of
from llava.eval.tasks import registry
from llava.eval.tasks.base import Report, Score
from llava.eval.tasks.digits import Digits
from llava.utils import UserError


class More(Digits):
    """The same questions under other names."""

    name = "digits_b"
    title = "Digits B"


class Failing(More):
    name = "digits_c"
    title = "Digits C"

    def report(self, answers, data):
        raise UserError("the annotations are broken")


class Absent(More):
    name = "digits_d"
    title = "Digits D"


@pytest.fixture
def several(monkeypatch, data, tmp_path):
    """Four tasks: two that work, one that cannot be scored, one without data; returns the data folder."""
    for one in (More, Failing, Absent):
        monkeypatch.setitem(registry.TASKS, one.name, f"{__name__}:{one.__name__}")
    for name in ("digits_b", "digits_c"):
        shutil.copytree(data.root, tmp_path / name)
    return tmp_path


def run(*words):
    try:
        main([str(one) for one in words])
    except SystemExit as end:
        return end.code
    return 0


def test_a_suite_loads_once_and_writes_each_result_at_once(
    several, checkpoints, tmp_path, monkeypatch, capsys
):
    loads, order = [], []
    original, write = opening.open_from_flags, suite.Run.answer_and_score
    monkeypatch.setattr(opening, "open_from_flags", lambda *a, **k: loads.append(1) or original(*a, **k))

    def noted(self, task, data, *rest):
        order.append(
            (
                task.name,
                sorted(str(one.parent.parent.name) for one in several.glob("*/answers/*.result.json")),
            )
        )
        return write(self, task, data, *rest)

    monkeypatch.setattr(suite.Run, "answer_and_score", noted)
    words = [
        "--tasks",
        "digits,digits_c,digits_d,digits_b",
        "--data-dir",
        several,
        "--output",
        tmp_path / "out",
    ]
    words += ["--model-path", checkpoints / "llava-tiny-v1.5", "--device", "cpu", "--max-new-tokens", "2"]
    assert run(*words, "--quiet") == 1 and loads == [1]
    assert order == [("digits", []), ("digits_c", ["digits"]), ("digits_b", ["digits"])]
    told = capsys.readouterr().out
    assert "failed: the annotations are broken" in told
    assert "not run: it lacks question-file, image-folder" in told
    table = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert [one["task"] for one in table["rows"]] == ["digits", "digits_c", "digits_d", "digits_b"]
    assert [one["score"] is None for one in table["rows"]] == [False, True, True, False]
    assert "| Digits B |" in (tmp_path / "out" / "suite.md").read_text()
    with Image.open(tmp_path / "out" / "bar.png") as image:
        assert image.width > 500


def test_a_suite_without_any_data_is_one_sentence(checkpoints, tmp_path):
    with pytest.raises(UserError, match="no task of this suite has its data .digits lacks question-file"):
        words = ["--tasks", "digits", "--model-path", checkpoints / "llava-tiny-v1.5"]
        run(*words, "--data-dir", tmp_path / "none", "--output", tmp_path / "out")
    with pytest.raises(UserError, match="--suite is 'v9'; expected v1.5"):
        run("--suite", "v9", "--model-path", checkpoints / "llava-tiny-v1.5")


def report(value, kind="official"):
    return Report((Score("accuracy", kind, value, 100, stderr=1.25),), 100, 100)


def test_scores_stand_beside_those_of_the_same_model():
    published = published_of("llava-v1.5-7b")
    rows = [
        row_of("mme", "MME", report(1490.0), published),
        row_of("gqa", "GQA", report(50.0), published),
        row_of("mm_vet", "MM-Vet", report(30.0, "judged"), published),
        row_of("digits", "Digits", report(98.0), published),
    ]
    lines = text_of(rows, "llava-v1.5-7b", published)
    assert "1510.7" in lines[1] and "-20.7, others got 1457.7 to 1509.4" in lines[1]
    assert lines[2].split()[-1] == "-12.0"
    assert f"30.0{MARK}" in lines[3] and "not comparable" in lines[3] and "-1.1" not in lines[3]
    assert lines[4].split() == ["Digits", "98.0", "1.2", "100"]
    below = "\n".join(lines[5:])
    assert "MODEL_ZOO.md" in below and "#1835" in below and "shut down" in below
    assert markdown_of(rows, "a|<b>", None).startswith("# a\\|&lt;b>")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava-v1.5-7b", "LLaVA-1.5-7B"),
        ("liuhaotian_llava-v1.5-13b-lora", "LLaVA-1.5-13B LoRA"),
        ("llava-v1.6-mistral-7b", "LLaVA-1.6-Mistral-7B"),
        ("llava-v1.6-34b", "LLaVA-1.6-Yi-34B"),
        ("llava-1.5-7b", "LLaVA-1.5-7B"),
        ("LLaVA-1.6-Vicuna-7B", "LLaVA-1.6-Vicuna-7B"),
        ("my-model", None),
    ],
)
def test_a_published_model_is_known_by_its_name(name, expected):
    found = published_of(name)
    assert (found and found.name) == expected


def test_the_table_of_published_scores_is_consistent():
    for one in PUBLISHED:
        assert published_of(one.name) == one and one.source
        assert all(0 < value < (2000 if task == "mme" else 100) for task, value in one.scores.items())
    assert set(SUITES["v1.5"]) == set(published_of("llava-v1.5-7b").scores)
    assert all(band.low < band.high for bands in BANDS.values() for band in bands.values())


def test_three_tasks_make_a_radar(tmp_path):
    from llava.eval.suites.charts import draw_charts

    published = published_of("llava-v1.5-7b")
    rows = [row_of(name, name, report(60.0), published) for name in ("gqa", "mme", "pope")]
    assert [one.name for one in draw_charts(rows, "m", tmp_path)] == ["bar.png", "radar.png"]
    assert draw_charts([], "m", tmp_path) == []


def test_every_task_of_a_suite_exists():
    names = {name for suite in SUITES.values() for name in suite}
    names |= {name for one in PUBLISHED for name in one.scores} | {
        name for one in BANDS.values() for name in one
    }
    assert names <= set(registry.TASKS)
