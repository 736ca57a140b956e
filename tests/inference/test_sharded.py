"""A batch over two processes: every process gets all answers, and they are those of one process."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from warming import python

from llava.conversation import conv_templates
from llava.inference import Assistant

ROOT = Path(__file__).parents[2]
QUESTIONS = ["Hello", "Tell me a long story about the sea", "Why?", "How are you?", "Go on"]
SCRIPT = """
import json
import sys
from accelerate import PartialState
import llava

folder, image, out = sys.argv[1:]
model = llava.load(folder, device="cpu", dtype="float32")
questions = [*QUESTIONS, ("What is this?", image)]
calls = []
model.model.register_forward_pre_hook(lambda *_: calls.append(1))
for count in (len(questions), 1):  # with one question the second process has nothing to do
    calls.clear()
    answers = model.batch(questions[-count:], sharded=True, batch_size=2, temperature=0, max_new_tokens=8)
    state = PartialState()
    assert bool(calls) == (state.process_index < count), calls
    with open(f"{out}/{state.process_index}-{count}.json", "w") as file:
        json.dump(answers, file)
state.wait_for_everyone()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(tmp_path, *arguments):
    script = tmp_path / "ask.py"
    script.write_text(f"QUESTIONS = {QUESTIONS!r}\n{SCRIPT}")
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), str(script), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_give_everybody_all_answers(checkpoints, load_family, sample_image, tmp_path):
    sample_image.save(tmp_path / "a.png")
    done = launch(tmp_path, checkpoints / "llava-tiny-v1.5", tmp_path / "a.png", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = Assistant(load_family("llama")[0], conv_templates["llava_v1"])
    expected = alone.batch([*QUESTIONS, ("What is this?", sample_image)], temperature=0, max_new_tokens=8)
    for process in (0, 1):
        assert json.loads((tmp_path / f"{process}-6.json").read_text()) == expected
        assert json.loads((tmp_path / f"{process}-1.json").read_text()) == expected[-1:]


@pytest.mark.slow
def test_a_bad_question_ends_all_processes(checkpoints, tmp_path):
    done = launch(tmp_path, checkpoints / "llava-tiny-v1.5", "/nowhere/a.png", tmp_path)
    assert done.returncode != 0
    assert "question 5: the image '/nowhere/a.png' cannot be read" in done.stderr
