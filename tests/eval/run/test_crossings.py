"""What one command writes another reads: files of answers of every origin, by every reader of such files."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from llava.eval.comparing.pairs import compare
from llava.eval.run.answering import answer_plan
from llava.eval.run.answers import read_answers
from llava.eval.run.asking import Outcome
from llava.eval.run.opening import weights_of
from llava.eval.run.plan import Shard, make_plan
from llava.eval.run.python import Evaluation
from llava.eval.run.results import check_task, of_run, score
from llava.eval.run.running import score_file
from llava.eval.scoring.converters import convert_gqa, convert_seed, convert_vizwiz, convert_vqav2
from llava.eval.summarize_gpt_review import review_files
from llava.eval.tasks.base import Ask, JsonValue, Record, TaskData
from llava.eval.tasks.registry import task_named
from llava.eval.webpage.data import compared
from llava.model.checkpoints.files import load_weights, save_tensors
from llava.utils import UserError

sys.path.append(str(Path(__file__).parents[1] / "tasks"))
from examples import GQA, SEED, TEXTVQA, VIZWIZ_TEST, VQAV2_TEST
from written import Example, answers, write


@dataclass
class Parrot:
    """A model that gives the same answers to the same questions; it remembers what it was asked."""

    says: Mapping[str, str]
    model_id: str = "tiny"
    settings: Mapping[str, JsonValue] = field(default_factory=lambda: {"weights": None, "temperature": 0})
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    asked: list[str | int] = field(default_factory=list)

    def render(self, ask: Ask) -> str:
        return ask.text

    def answer(self, asks: Mapping[int, Ask]) -> Iterator[Outcome]:
        for index, ask in reversed(asks.items()):
            self.asked.append(ask.id)
            yield Outcome(index, self.says[str(ask.id)], "stop")


@pytest.fixture
def seed(tmp_path: Path) -> TaskData:
    """SEED-Bench's three questions, with the reference's question file, and images."""
    data = SEED.place(tmp_path, reference=True)
    for ask in SEED.the_task().asks(data):
        write(Path(str(ask.images[0])), "an image")
    return data


SAYS = {"101": "A", "102": "B", "v7": "D"}  # of three answers two are right


def records(data: TaskData) -> list[Record]:
    return answers(SEED, data, list(SAYS.values()))


def lines(rows: list[Record]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


# ---- who may have written a file of answers ----

Writer = Callable[[list[Record]], bytes]
WRITERS: dict[str, Writer] = {
    "ours": lines,
    "with further fields": lambda rows: lines([row | {"logprobs": [1], "seconds": 0.5} for row in rows]),
    "other answer ids": lambda rows: lines([row | {"answer_id": f"{row['text']}-id"} for row in rows]),
    "another order of fields": lambda rows: lines([dict(reversed(row.items())) for row in rows]),
    "another order of lines": lambda rows: lines(rows[::-1]),
    "objects one after the other": lambda rows: lines(rows).replace(b"\n", b""),
    "of Windows": lambda rows: b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n"),
    "blank lines between": lambda rows: b"\n" + lines(rows).replace(b"\n", b"\n\n"),
    "without the last line break": lambda rows: lines(rows).rstrip(),
    "not ASCII": lambda rows: "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode(),
    "each answer twice": lambda rows: lines([*rows, *rows]),
}  # fmt: skip
each_writer = pytest.mark.parametrize("writer", WRITERS)


@each_writer
def test_answers_of_every_origin_are_scored_converted_shown_and_resumed(
    writer: str, seed: TaskData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(WRITERS[writer](records(seed)))
    report, _ = score(task_named("seed"), seed, read_answers(path))
    assert report.scores[0].value == pytest.approx(200 / 3) and report.answered == 3
    assert not (report.missing or report.unexpected)
    assert len(report.repeated) == (3 if "twice" in writer else 0)
    convert_seed(tmp_path / "SEED-Bench.json", path, tmp_path / "up.jsonl")
    told = [json.loads(one) for one in (tmp_path / "up.jsonl").read_text().splitlines()]
    assert {one["question_id"]: one["prediction"] for one in told} == SAYS
    assert "Total accuracy: 66.67%" in capsys.readouterr().out
    page = compared(tmp_path / "llava-seed-bench.jsonl", [path], [])
    assert [one["answers"] for one in page.questions] == [{"tiny": said} for said in SAYS.values()]
    parrot = Parrot(SAYS)
    done = answer_plan(make_plan(task_named("seed"), seed), parrot, path, quiet=True)
    assert (parrot.asked, done.already, len(done.records)) == ([], 3, 3)
    again, _ = score(task_named("seed"), seed, read_answers(path))
    assert again.scores == report.scores


# ---- what a run was when it stopped ----

Broken = Callable[[list[Record]], bytes]
STOPPED: dict[str, tuple[Broken, list[str | int]]] = {
    "half a line": (lambda rows: lines(rows)[:-30], ["v7"]),
    "half a line in the middle": (
        lambda rows: lines(rows[:1]) + b'{"question_id": 102, "te\n' + lines(rows[2:]),
        [102],
    ),
    "objects one after the other, one half": (lambda rows: lines(rows).replace(b"\n", b"")[:-9], ["v7"]),
    "one answer": (lambda rows: lines(rows[1:2]), [101, "v7"]),
    "a shard that stopped": (lambda rows: lines([rows[0]]), [102, "v7"]),
    "shards joined, one half": (lambda rows: lines(rows[2:]) + lines(rows[:2])[:-9], [102]),
    "nothing": (lambda rows: b"", [101, 102, "v7"]),
}  # fmt: skip


@pytest.mark.parametrize("stopped", STOPPED)
def test_a_run_that_stopped_asks_what_lacks_and_scores_as_a_whole_one(
    stopped: str, seed: TaskData, tmp_path: Path
) -> None:
    make, lacking = STOPPED[stopped]
    path = tmp_path / "answers.jsonl"
    path.write_bytes(make(records(seed)))
    parrot = Parrot(SAYS)
    answer_plan(make_plan(task_named("seed"), seed), parrot, path, quiet=True)
    assert sorted(map(str, parrot.asked)) == sorted(map(str, lacking))
    report, _ = score(task_named("seed"), seed, read_answers(path))
    assert (report.answered, report.repeated, report.unexpected) == (3, (), ())
    assert report.scores[0].value == pytest.approx(200 / 3)


def test_shards_are_scored_and_converted_as_one_file(seed: TaskData, tmp_path: Path) -> None:
    task, path = task_named("seed"), tmp_path / "merge.jsonl"
    for part in ("1/2", "0/2"):
        plan = make_plan(task, seed, shard=Shard.read(part))
        shard = tmp_path / f"{part[0]}.jsonl"
        answer_plan(plan, Parrot(SAYS), shard, quiet=True)
        with path.open("ab") as file:
            file.write(shard.read_bytes())
    report, _ = score(task, seed, read_answers(path))
    assert (report.answered, report.repeated) == (3, ()) and report.scores[0].n == 3
    parrot = Parrot(SAYS)
    answer_plan(make_plan(task, seed), parrot, path, quiet=True)
    assert parrot.asked == []
    assert [one["question_id"] for one in read_answers(path).records] == [101, 102, "v7"]


# ---- files of somebody else ----


def test_another_models_answers_are_scored_and_not_resumed(seed: TaskData, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(lines([row | {"model_id": "gpt-x"} for row in records(seed)]))
    before = path.read_bytes()
    assert score(task_named("seed"), seed, read_answers(path))[0].answered == 3
    with pytest.raises(UserError, match="holds answers of gpt-x, and tiny is asked now"):
        answer_plan(make_plan(task_named("seed"), seed), Parrot(SAYS), path, quiet=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", [GQA, VIZWIZ_TEST], ids=str)
def test_answers_to_another_task_are_refused_by_every_reader(
    other: Example, seed: TaskData, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    path = tmp_path / "answers.jsonl"
    path.write_bytes(lines(answers(other, other.place(tmp_path / "other"))))
    readers: dict[str, Callable[[], object]] = {
        "none of the": lambda: score(task_named("seed"), seed, read_answers(path)),
        "has no question": lambda: convert_seed(tmp_path / "SEED-Bench.json", path, tmp_path / "up"),
        "is to one of the 3 questions": lambda: compared(tmp_path / "llava-seed-bench.jsonl", [path], []),
        "is to a question of seed": lambda: answer_plan(
            make_plan(task_named("seed"), seed), Parrot(SAYS), path, quiet=True
        ),
    }
    for message, read in readers.items():
        with pytest.raises(UserError, match=message):
            read()
    assert not (tmp_path / "up").exists()


# ---- scores and converters, results and comparisons ----


def _by_vqav2(folder: Path, path: Path, target: Path) -> None:
    (folder / "answers/s/m").mkdir(parents=True)
    (folder / "answers/s/m/merge.jsonl").write_bytes(path.read_bytes())
    convert_vqav2(folder, "m", "s")
    (folder / "answers_upload/s/m.json").rename(target)


CONVERTERS: dict[str, tuple[Example, Callable[[Path, Path, Path], None]]] = {
    "gqa": (GQA, lambda folder, path, target: convert_gqa(path, target)),
    "seed": (SEED, lambda folder, path, target: convert_seed(folder / "SEED-Bench.json", path, target)),
    "vizwiz": (
        VIZWIZ_TEST, lambda folder, path, target: convert_vizwiz(folder / "llava_test.jsonl", path, target)
    ),
    "vqav2": (VQAV2_TEST, _by_vqav2),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_submission_is_what_the_converter_makes_of_the_same_answers(name: str, tmp_path: Path) -> None:
    example, convert = CONVERTERS[name]
    data = replace(example.place(tmp_path, reference=True), submission=tmp_path / "ours")
    path = tmp_path / "answers.jsonl"
    path.write_bytes(lines(answers(example, data)))
    score(example.the_task(), data, read_answers(path))
    convert(tmp_path, path, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_folder_that_scores_were_written_to_is_scored_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the answers lie what each question earned, the result, and how they were made."""
    from programs import PROGRAMS, start

    data, folder = TEXTVQA.place(tmp_path), tmp_path / "answers"
    write(folder / "tiny.jsonl", lines(answers(TEXTVQA, data)).decode())
    score_file(TEXTVQA.the_task(), data, folder / "tiny.jsonl", None)
    assert sorted(one.name for one in folder.iterdir())[0] == "tiny.graded.jsonl"
    capsys.readouterr()
    words = [f"--annotation-file={tmp_path / 'TextVQA_0.5.1_val.json'}", f"--result-dir={folder}"]
    start(PROGRAMS["eval_textvqa"], words, monkeypatch)
    told = capsys.readouterr().out
    assert told.count("Accuracy: 100.00%") == 1 and "Skipping tiny.graded.jsonl" in told


def test_what_nobody_has_judged_is_not_summarised(tmp_path: Path) -> None:
    for name in ("tiny.judge-1.jsonl", "tiny.to-judge.jsonl"):
        write(tmp_path / "reviews" / name, [{"question_id": 1}])
    assert [one.name for one in review_files(str(tmp_path / "reviews"), ())] == ["tiny.judge-1.jsonl"]


def _old(result: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a result as it was before answers were named."""
    counts = result["counts"]
    assert isinstance(counts, dict)
    kept = {name: value for name, value in result.items() if name not in ("repeated", "empty", "judge")}
    return kept | {"counts": {name: n for name, n in counts.items() if name not in ("repeated", "empty")}}


def test_an_old_folder_of_results_is_compared_with_a_new_one(seed: TaskData, tmp_path: Path) -> None:
    task = task_named("seed")
    for name, says in (("old", "B"), ("new", "C")):
        path = tmp_path / name / "tiny.jsonl"
        write(path, lines(answers(SEED, seed, ["A", says, "D"])).decode())
        score_file(task, seed, path, None)
    result = tmp_path / "old/tiny.result.json"
    write(result, json.dumps(_old(json.loads(result.read_text()))))
    (tmp_path / "old").rename(tmp_path / "moved")
    found = compare(tmp_path / "moved/tiny.jsonl", tmp_path / "new/tiny.result.json")
    assert [(one.first.id, one.change, one.ask is not None) for one in found.flips] == [(102, 1.0, True)]


# ---- how answers were made, by whatever way they are scored ----


def custom_data(root: Path, **options: str) -> TaskData:
    """A question of one's own, with the options of a run."""
    write(root / "my.jsonl", [{"question_id": 1, "text": "Hue?", "answer": "red"}])
    return TaskData(root, {"question-file": root / "my.jsonl"}, options=options)


def test_another_metric_or_judge_asks_nothing_again(tmp_path: Path) -> None:
    task, model, path = task_named("custom"), Parrot({"1": "red"}), tmp_path / "a.jsonl"
    for options in ({"metric": "exact"}, {"metric": "anls", "by": "x"}, {"metric": "judge", "rule": "r"}, {}):
        answer_plan(make_plan(task, custom_data(tmp_path, **options)), model, path, quiet=True)
    assert model.asked == [1]
    note = json.loads((tmp_path / "a.run.json").read_text())
    (tmp_path / "a.run.json").write_text(json.dumps(note | {"options": {"metric": "vqa"}}))  # as of old
    answer_plan(make_plan(task, custom_data(tmp_path)), model, path, quiet=True)
    assert model.asked == [1]


def test_scores_apart_from_the_run_tell_how_it_was_made(tmp_path: Path) -> None:
    facts: dict[str, JsonValue] = {"template_reason": "because", "batch_size": 4, "models_returned": ["m-1"]}
    task, data, path = task_named("custom"), custom_data(tmp_path), tmp_path / "a.jsonl"
    plan = make_plan(task, data)
    answer_plan(plan, Parrot({"1": "red"}, facts=facts), path, quiet=True)
    # resumed: nothing is asked, so that nobody answers; the earlier answers are of m-1 all the same
    later = Parrot({}, facts=facts | {"batch_size": 2, "models_returned": []})
    again = answer_plan(plan, later, path, quiet=True)
    (tmp_path / "r").mkdir()
    result = score_file(task, data, path, str(tmp_path / "r" / "a.json")).result
    whole = of_run(plan, later, again)
    assert result["model"] == whole["model"]
    assert whole["model"] == {"id": "tiny", "weights": None, "temperature": 0, **facts, "batch_size": 2}
    assert (result["first_prompt"], result["questions_from"]) == ("Hue?", whole["questions_from"])


def test_answers_that_nobody_can_score_have_no_score(tmp_path: Path) -> None:
    data = VIZWIZ_TEST.place(tmp_path, reference=True)
    rows = answers(VIZWIZ_TEST, data, ["x"] * len(list(VIZWIZ_TEST.the_task().asks(data))))
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    report, result = score(VIZWIZ_TEST.the_task(), data, read_answers(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match="vizwiz has no score: .*answers of this split are not published"):
        assert Evaluation(report, result, ()).score


@pytest.mark.parametrize(
    ("made", "scored", "right"),
    [
        ("seed", "seed", True),
        ("pope", "seed", False),
        ("mmbench", "mmbench_cn", False),
        ("science_qa", "science_qa_gpt", True),
        ("science_qa_gpt", "science_qa", False),
        (["seed"], "seed", False),
    ],
)
def test_answers_to_another_task_are_not_scored(
    made: object, scored: str, right: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    write(path, "")
    write(tmp_path / "a.run.json", json.dumps({"task": made}))
    if right:
        check_task(task_named(scored), path)
        return
    write(tmp_path / "a.result.json", "an earlier result")
    with pytest.raises(UserError, match=f"a.jsonl holds answers to .*, and {scored} is to be scored"):
        score_file(task_named(scored), TaskData(tmp_path), path, None)
    assert (tmp_path / "a.result.json").read_text() == "an earlier result"


@pytest.mark.parametrize("note", [None, "", "[]", "{}", "rubbish"])
def test_answers_without_a_note_of_their_task_are_scored(note: str | None, tmp_path: Path) -> None:
    if note is not None:
        write(tmp_path / "a.run.json", note)
    check_task(task_named("seed"), tmp_path / "a.jsonl")


def test_the_weights_of_an_adapter_are_those_of_its_base_too(checkpoints: Path, tmp_path: Path) -> None:
    """Answers of an adapter whose base or strength has changed are not resumed, however the base is named."""
    lora = Path(shutil.copytree(checkpoints / "llava-tiny-v1.5-lora", tmp_path / "lora"))
    base = Path(shutil.copytree(checkpoints / "vicuna-tiny", tmp_path / "base"))
    settings = json.loads((lora / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    before = weights_of(str(lora))
    assert before is not None and before == weights_of(str(lora), str(base))
    (lora / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    assert weights_of(str(lora)) != before
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    assert weights_of(str(lora)) == before
    weights = load_weights(base)
    weights["lm_head.weight"][0] += 1
    save_tensors(weights, base / "pytorch_model.bin")
    assert weights_of(str(lora)) != before
    assert weights_of(str(base)) is not None
