"""`llava.eval.evaluate`: from a folder, a loaded model, an Assistant; a task of one's own; random numbers."""

import json
import random

import numpy as np
import pytest
import torch

import llava
import llava.eval
from llava.eval.tasks.base import Ask, Report, Score, Task
from llava.inference.assistant import Assistant
from llava.utils import UserError


def test_every_kind_of_model_gives_the_same(data, tiny, checkpoints, tmp_path):
    folder = checkpoints / "llava-tiny-v1.5"
    found = [
        llava.eval.evaluate(model, "digits", data=data.root, max_new_tokens=4, batch_size=3)
        for model in (folder, tiny, Assistant(tiny, llava.conversation.conv_templates["llava_v1"]))
    ]
    texts = [[one["text"] for one in each.records] for each in found]
    assert len(texts[0]) == 12 and texts[1] == texts[2]
    assert found[0].result["model"]["weights"].startswith("sha256:")
    assert found[1].report.asked == 12 and found[1].score == found[1].report.scores[0].value
    written = llava.eval.evaluate(
        tiny, "digits", data=data.root, answers=tmp_path / "a.jsonl", max_new_tokens=4, limit=2
    )
    assert len(written.records) == 2 == len((tmp_path / "a.jsonl").read_text().splitlines())
    assert json.dumps(written.result, default=str)


def test_random_numbers_go_on_as_if_nothing_had_been_asked(data, tiny):
    def draw():
        return random.random(), float(np.random.rand()), torch.rand(2).tolist()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    llava.eval.evaluate(tiny, "digits", data=data.root, temperature=1.0, max_new_tokens=4, limit=4)
    assert draw() == expected


class Echo(Task):
    """A task of one's own."""

    name = "echo"
    title = "Echo"
    data = ()

    def asks(self, data):
        yield Ask("a", "Say something.")

    def report(self, answers, data):
        return Report(
            (Score("length", "official", len(answers[0]["text"]), 1, unit="points"),), 1, len(answers)
        )


def test_a_task_of_ones_own(tiny):
    found = llava.eval.evaluate(tiny, Echo(), max_new_tokens=3)
    assert found.score == len(found.records[0]["text"])
    assert found.result["scores"][0]["unit"] == "points"


def test_what_cannot_be_evaluated_is_one_sentence(tiny, data):
    with pytest.raises(UserError, match="there is no "):
        llava.eval.evaluate(tiny, "digits", data=data.root / "none")
    with pytest.raises(UserError, match="temperatur is no setting"):
        llava.eval.evaluate(tiny, "digits", data=data.root, temperatur=1)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llava.eval.nothing
