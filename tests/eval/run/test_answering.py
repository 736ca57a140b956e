"""Answering: records as the reference writes them, resumed without loss, batched as unbatched."""

import json
import logging
import re

import pytest

from llava.conversation import conv_templates
from llava.eval.run.answering import answer_plan, note_path
from llava.eval.run.answers import read_answers
from llava.eval.run.asking import Outcome
from llava.eval.run.plan import Shard, make_plan
from llava.eval.run.results import of_run, score
from llava.eval.tasks.base import TaskData
from llava.eval.tasks.digits import Digits
from llava.inference import ChatSession
from llava.utils import UserError

FIELDS = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]


def ask(data, asker, answers, **changes):
    plan = make_plan(Digits(), data, limit=changes.pop("limit", None), shard=changes.pop("shard", None))
    return answer_plan(plan, asker, answers, quiet=True, **changes)


def texts(path):
    return {one["question_id"]: one["text"] for one in read_answers(path).records}


def test_records_have_the_references_fields_in_the_order_of_the_questions(data, asker, tmp_path):
    done = ask(data, asker(), tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    records = [json.loads(one) for one in lines]
    assert [list(one) for one in records] == [FIELDS] * 12
    assert [one["question_id"] for one in records] == list(range(12))
    assert all(re.fullmatch(r"[2-9A-HJ-NP-Za-km-z]{22}", one["answer_id"]) for one in records)
    assert len({one["answer_id"] for one in records}) == 12
    assert lines == [json.dumps(one) for one in records] and tuple(records) == done.records
    assert (done.asked, done.already, done.failures) == (12, 0, ())
    assert done.first_prompt.endswith("USER: <image>\nWhat is 0 plus 1? ASSISTANT:")


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_batched_answers_are_those_of_asking_one_by_one(data, asker, tiny, tmp_path, batch_size):
    ask(data, asker(batch_size), tmp_path / "a.jsonl")
    expected = {}
    for one in make_plan(Digits(), data).asks:
        session = ChatSession(tiny, template=conv_templates["llava_v1"])
        expected[one.id] = session.ask(one.text, one.sources(), temperature=0, max_new_tokens=6)
    assert texts(tmp_path / "a.jsonl") == expected and len(set(expected.values())) > 3


def test_what_has_an_answer_is_not_asked_again(data, asker, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    ask(data, asker(), path, limit=5)
    first = path.read_text()
    model = asker(batch_size=2)
    asked = []
    original = model.answer
    monkeypatch.setattr(model, "answer", lambda asks: asked.extend(asks) or original(asks))
    done = ask(data, model, path)
    assert asked == list(range(5, 12)) and (done.already, done.asked) == (5, 7)
    assert path.read_text().startswith(first)
    assert ask(data, model, path).asked == 0


def test_shards_in_one_file_are_the_whole(data, asker, tmp_path):
    for number in (2, 0, 1):
        done = ask(data, asker(), tmp_path / "a.jsonl", shard=Shard.read(f"{number}/3"))
        assert done.asked == 4
    ask(data, asker(), tmp_path / "b.jsonl")
    assert texts(tmp_path / "a.jsonl") == texts(tmp_path / "b.jsonl")
    assert [one["question_id"] for one in read_answers(tmp_path / "a.jsonl").records] == list(range(12))


def test_an_empty_answer_is_an_answer_and_is_told(data, asker, tmp_path, monkeypatch):
    """A model that says nothing has answered: it is not asked again, and the score says of which question."""
    model, path = asker(), tmp_path / "a.jsonl"
    original = model.answer

    def answer(asks):
        for one in original(asks):
            yield Outcome(one.index, "", "stop") if one.index == 4 else one

    monkeypatch.setattr(model, "answer", answer)
    done = ask(data, model, path)
    assert texts(path)[4] == "" and (done.asked, done.failures) == (12, ())
    again = ask(data, model, path)
    assert (again.already, again.asked) == (12, 0)
    report, result = score(Digits(), data, read_answers(path))
    assert (report.answered, report.empty, result["empty"]) == (12, (4,), [4])
    assert next(one for one in report.graded if one.id == 4).credit == 0


def test_questions_that_stand_twice_in_the_data_are_named(data, asker, tmp_path, caplog):
    questions = json.loads((data.root / "test.json").read_text())
    (data.root / "test.json").write_text(json.dumps([*questions, questions[5]]))
    plan, path = make_plan(Digits(), data), tmp_path / "a.jsonl"
    with caplog.at_level(logging.WARNING):
        done = answer_plan(plan, asker(), path, quiet=True)
    assert (done.asked, done.repeated) == (
        13,
        (5,),
    ) and "1 questions stand in the data more than" in caplog.text
    assert of_run(plan, asker(), done)["run"]["repeated_questions"] == [5]
    report, _ = score(Digits(), data, read_answers(path))
    assert "1 questions stand in the data more than once: 5" in report.notes
    assert (report.asked, report.answered, report.repeated) == (13, 13, (5,))
    assert answer_plan(plan, asker(), path, quiet=True).asked == 0


def test_a_half_last_line_is_asked_again(data, asker, tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    ask(data, asker(), path)
    whole = texts(path)
    path.write_bytes(path.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        done = ask(data, asker(), path)
    assert (done.asked, texts(path)) == (1, whole)
    assert "line 12 is no JSON object" in done.repaired[0] and "line 12" in caplog.text


def test_a_line_that_only_lacks_its_end_is_kept(data, asker, tmp_path):
    path = tmp_path / "a.jsonl"
    ask(data, asker(), path, limit=3)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    done = ask(data, asker(), path, limit=4)
    assert done.asked == 1 and len(read_answers(path).records) == 4


def test_a_broken_line_in_the_middle_costs_its_own_answer_alone(data, asker, tmp_path):
    path = tmp_path / "a.jsonl"
    ask(data, asker(), path)
    whole = texts(path)
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:30]
    path.write_text("\n".join(lines) + "\n")
    done = ask(data, asker(), path)
    assert done.asked == 1 and texts(path) == whole and len(path.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.7}, "settings.temperature was 0 and is 0.7"),
        ({"max_new_tokens": 3}, "settings.max_new_tokens was 6 and is 3"),
        ({"seed": 1}, "settings.seed was None and is 1"),
    ],
)
def test_other_settings_do_not_mix(data, asker, tmp_path, change, message):
    path = tmp_path / "a.jsonl"
    ask(data, asker(), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        ask(data, asker(**change), path)
    assert "--start-over" in str(caught.value) and path.read_bytes() == before
    assert ask(data, asker(**change), path, start_over=True).asked == 12


def test_other_data_and_another_model_do_not_mix(data, asker, tmp_path):
    path = tmp_path / "a.jsonl"
    ask(data, asker(), path, limit=2)
    questions = json.loads((data.root / "test.json").read_text())
    questions[5]["question"] = "Something else?"
    (data.root / "test.json").write_text(json.dumps(questions))
    with pytest.raises(UserError, match="data.question-file.sha256 was"):
        ask(data, asker(), path)
    note_path(path).unlink()
    other = asker()
    other._model_id = "another"
    with pytest.raises(UserError, match="holds answers of tiny, and another is asked now"):
        ask(data, other, path)


def test_answers_of_another_question_set_are_refused(data, asker, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question_id": 0, "prompt": "Other?", "text": "x"}) + "\n")
    with pytest.raises(UserError, match="none of the 1 answers"):
        ask(data, asker(), path)
    assert path.read_text().count("\n") == 1


def test_missing_and_damaged_images_are_named_and_the_rest_is_answered(data, asker, tmp_path, caplog):
    (data.root / "images" / "3-0.png").unlink()
    damaged = data.root / "images" / "6-0.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        done = ask(data, asker(), tmp_path / "a.jsonl")
    assert [one.id for one in sorted(done.failures, key=lambda one: int(one.id))] == [3, 6]
    assert sorted(texts(tmp_path / "a.jsonl")) == [0, 1, 2, 4, 5, 7, 8, 9, 10, 11]
    assert "question 3 has no answer" in caplog.text and "3-0.png" in caplog.text and "6-0.png" in caplog.text


def test_a_wrong_image_folder_is_told_before_anything_is_asked(data, tmp_path):
    (tmp_path / "empty").mkdir()
    elsewhere = TaskData(data.root, files={"image-folder": tmp_path / "empty"})
    with pytest.raises(UserError, match="none of the first .* images is there.*--image-folder"):
        make_plan(Digits(), elsewhere)


@pytest.mark.parametrize("shard", ["1", "2/2", "-1/2", "a/b", "0/0", "0/2/3", ""])
def test_bad_shards_are_one_sentence(shard):
    with pytest.raises(UserError, match="expected i/n"):
        Shard.read(shard)


def test_a_folder_in_the_place_of_the_answers_is_named(data, asker, tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        ask(data, asker(), tmp_path / "a.jsonl")


def test_too_little_memory_halves_the_batch_and_loses_nothing(data, asker, tmp_path, monkeypatch, caplog):
    import torch

    from llava.inference.engine import stepper

    original = stepper.Stepper.step

    def step(self):
        if len(self.prefilling) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self)

    monkeypatch.setattr(stepper.Stepper, "step", step)
    model = asker(batch_size=8)
    with caplog.at_level(logging.WARNING):
        done = ask(data, model, tmp_path / "a.jsonl")
    assert (done.failures, model.batch_size) == ((), 2) and "too little memory" in caplog.text
    ask(data, asker(batch_size=1), tmp_path / "b.jsonl")
    assert texts(tmp_path / "a.jsonl") == texts(tmp_path / "b.jsonl")
