"""Kill -9 at any moment: nothing that was answered is lost or asked again, and nothing stays out."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
from questions import write_questions

from llava.eval.run.answering import answer_plan
from llava.eval.run.answers import read_answers
from llava.eval.run.plan import Shard, make_plan
from llava.eval.tasks.base import TaskData
from llava.eval.tasks.digits import Digits

COUNT = 60
FORK = multiprocessing.get_context("fork")


def _work(folder, asker, log, batch_size, shard):
    """Answer a shard; note in the log what is asked."""
    original, fsync = asker.answer, os.fsync
    asker.batch_size = batch_size

    def answer(asks):
        with open(log, "a") as file:
            file.write(json.dumps(sorted(asks)) + "\n")
        return original(asks)

    def slow(handle):
        time.sleep(0.01)
        fsync(handle)

    asker.answer, os.fsync = answer, slow
    plan = make_plan(Digits(), TaskData(folder / "digits"), shard=shard)
    answer_plan(plan, asker, folder / "a.jsonl", quiet=True)


def _start(folder, asker, number, batch_size, count):
    logs = [folder / f"{number}-{index}.log" for index in range(count)]
    workers = [
        FORK.Process(target=_work, args=(folder, asker, log, batch_size, Shard(index, count)))
        for index, log in enumerate(logs)
    ]
    for one in workers:
        one.start()
    return workers, logs


def _whole_ids(path):
    """The ids whose answers are whole in the file as it lies there."""
    return {one["question_id"] for one in read_answers(path).records} if path.exists() else set()


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_ask_nothing_twice(tmp_path, asker):
    write_questions(tmp_path / "digits", COUNT)
    path = tmp_path / "a.jsonl"
    chance = random.Random(5)
    killed = 0
    for number in range(100):
        before = _whole_ids(path)
        workers, logs = _start(tmp_path, asker(), number, chance.choice([1, 3, 8]), chance.choice([1, 2]))
        if killed < 10 and len(before) < COUNT - 3:
            deadline = time.monotonic() + 60
            wanted = len(before) + chance.randint(1, 4)
            while len(_whole_ids(path)) < wanted and time.monotonic() < deadline:
                time.sleep(chance.uniform(0.001, 0.01))
            for one in workers:
                killed += one.is_alive()
                os.kill(one.pid, signal.SIGKILL)
            if killed % 3 == 1 and path.exists():  # as a crash of the machine may leave it
                with open(path, "ab") as file:
                    file.write(b'{"question_id": 5, "prompt": "Wh')
        for one in workers:
            one.join(120)
        asked = [index for log in logs if log.exists() for line in log.open() for index in json.loads(line)]
        assert not before & set(asked), "asked again"
        assert before <= _whole_ids(path), "lost"
        if all(one.exitcode == 0 for one in workers):
            break
    assert killed >= 10
    lines = path.read_text().splitlines()
    assert [json.loads(one)["question_id"] for one in lines] == list(range(COUNT))
    texts = [json.loads(one)["text"] for one in lines]
    fresh = answer_plan(make_plan(Digits(), TaskData(tmp_path / "digits")), asker(), None, quiet=True)
    assert texts == [one["text"] for one in fresh.records]
