"""The program: answer, score and both, the result that is written, exit codes, and what `list` tells."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from warming import python

from llava.eval.run.command import main, parser_of
from llava.eval.run.flags import read_data
from llava.eval.tasks.registry import task_named, task_names
from llava.utils import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def flags(checkpoints, data):
    return [
        *("--model-path", str(checkpoints / "llava-tiny-v1.5"), "--device", "cpu", "--dtype", "float32"),
        *("--data-dir", str(data.root), "--max_new_tokens", "4", "--batch-size", "4"),
    ]


def run(*words):
    """Run the program; returns its exit code."""
    try:
        main([str(one) for one in words])
    except SystemExit as end:
        return end.code
    return 0


def test_both_verbs_give_what_one_after_the_other_gives(flags, data, tmp_path, capsys):
    assert run("digits", *flags, "--answers", tmp_path / "a.jsonl") == 0
    result = json.loads((tmp_path / "a.result.json").read_text())
    assert result["task"] == "digits" and result["scores"][0]["kind"] == "official"
    assert result["counts"] == {
        **dict.fromkeys(("unparsable", "failed", "missing", "unexpected", "broken_lines"), 0),
        **dict.fromkeys(("repeated", "empty"), 0),
        "asked": 12,
        "answered": 12,
    }
    model = result["model"]
    assert model["template"] == "llava_v1" and "config" in model["template_reason"] + "config"
    assert model["weights"].startswith("sha256:") and model["dtype"] == "float32" and model["batch_size"] == 4
    assert model["temperature"] == 0.0 and model["max_new_tokens"] == 4
    assert result["first_prompt"].endswith("ASSISTANT:") and "<image>\nWhat is 0" in result["first_prompt"]
    assert len(result["data"]["question-file"]["sha256"]) == 64
    assert {"llava", "torch", "transformers", "python"} <= set(result["versions"])
    assert result["run"]["questions"] == 12 and result["run"]["endings"]
    assert "12 of 12 questions have an answer" in capsys.readouterr().out

    assert run("answer", "digits", *flags, "--answers", tmp_path / "b.jsonl") == 0
    assert not (tmp_path / "b.result.json").exists()
    scored = ["score", "digits", "--data-dir", data.root, "--answers", tmp_path / "b.jsonl"]
    assert run(*scored, "--output", tmp_path / "r.json") == 0
    again = json.loads((tmp_path / "r.json").read_text())
    assert again["scores"] == result["scores"] and again["model"]["weights"] == model["weights"]


def test_the_usual_place_of_answers_is_the_references(flags, data):
    assert run("answer", "digits", *flags, "--limit", "2") == 0
    (path,) = (data.root / "answers").glob("*.jsonl")
    assert path.name == "llava-tiny-v1.5.jsonl" and len(path.read_text().splitlines()) == 2


def test_questions_without_an_answer_make_exit_code_1(flags, data, tmp_path, capsys):
    (data.root / "images" / "3-0.png").unlink()
    assert run("digits", *flags, "--answers", tmp_path / "a.jsonl") == 1
    result = json.loads((tmp_path / "a.result.json").read_text())
    assert result["counts"]["answered"] == 11 and result["missing"] == [3]
    assert "3-0.png" in result["run"]["failures"][0]
    assert "without an answer: 3" in capsys.readouterr().out


def test_scoring_counts_broken_lines_and_unexpected_answers(flags, data, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    run("answer", "digits", *flags, "--answers", path)
    lines = path.read_text().splitlines()
    lines[0] = "\ufeff" + lines[0]
    lines[2] = lines[2][:20]
    lines.append(json.dumps({"question_id": 99, "text": "x"}))
    path.write_text("\n\n".join(lines))
    assert run("score", "digits", "--data-dir", data.root, "--answers", path) == 1
    counts = json.loads((tmp_path / "a.result.json").read_text())["counts"]
    assert (counts["answered"], counts["broken_lines"], counts["unexpected"]) == (11, 1, 1)
    told = capsys.readouterr().out
    assert "1 broken lines" in told and "1 answers to no question" in told


def test_what_is_amiss_with_answers_is_named_by_question(data, tmp_path, capsys):
    rows = [{"question_id": n, "text": str(n + 1)} for n in range(12)]
    rows[4]["text"] = " "
    rows += [rows[7] | {"text": "wrong"}, rows[2], rows[2], {"question_id": "other", "text": "x"}]
    del rows[0]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    assert run("score", "digits", "--data-dir", data.root, "--answers", path) == 1
    result = json.loads((tmp_path / "a.result.json").read_text())
    named = {"missing": [0], "unexpected": ["other"], "repeated": [7, 2], "empty": [4]}
    assert {name: result[name] for name in named} == named
    assert {name: result["counts"][name] for name in named} == {name: len(ids) for name, ids in named.items()}
    assert result["scores"][0]["value"] == pytest.approx(100 * 9 / 11)  # of two answers the last one counts
    told = capsys.readouterr().out
    assert "without an answer: 0\n" in told and "answered, and not asked: other\n" in told
    assert "answered more than once: 7, 2\n" in told and "empty answers: 4\n" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no answers"),
        ("nothing\n", "holds no answers .1 broken lines, line 1 is no JSON object"),
        (
            '{"question_id": 500, "text": "a"}\n',
            "digits: none of the 1 answers belongs to a question .* 500.; expected answers to Digits",
        ),
    ],
)
def test_nothing_to_score_is_one_sentence(data, tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        run("score", "digits", "--data-dir", data.root, "--answers", tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        run("score", "digits", "--data-dir", data.root, "--answers", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["answer"], "name a task first"),
        (["answer", "digit"], "did you mean digits"),
        (["digits", "--data-dir", "x"], "neither of --model-path and --base-url"),
        (["digits", "--model-path", "a", "--base-url", "http://x/v1"], "both of --model-path and --base-url"),
        (["digits", "--base-url", "http://x/v1", "--num_beams", "4"], "--num_beams cannot be kept with"),
        (["--tasks", "a", "--base-url", "http://x/v1", "--conv-mode", "v1"], "--conv-mode cannot be kept"),
        (["digits", "--base-url", "http://x/v1", "--batch-size", "2"], "--batch-size cannot be kept with"),
        (["digits", "--model-path", "a", "--model", "b"], "--model is for a server, which --base-url names"),
        (
            ["answer", "digits", "--model-path", "a", "--api-key", "k", "--concurrency", "2"],
            "--api-key, --concurrency are for a server",
        ),
        (
            ["--tasks", "a", "--model-path", "a", "--retries", "0", "--request-timeout", "2"],
            "--retries, --request-timeout are for a server",
        ),
        (["--suite", "v1.5", "--tasks", "digits", "--base-url", "http://x/v1"], "--suite and --tasks were"),
        (["--tasks", "", "--base-url", "http://x/v1"], "--tasks names no task"),
        (["--tasks=,", "--base-url", "http://x/v1"], "--tasks names no task"),
        (["--suite", "v9", "--base-url", "http://x/v1"], "--suite is 'v9'; expected v1.5"),
        (["answer", "gqa", "--base-url", "http://x/v1", "--load-4bit", "--dtype", "x"], "--dtype, --load-4"),
        (["score", "digits"], "--answers"),
        (["digits", "--nope"], "--help explains"),
    ],
)
def test_wrong_words_are_one_sentence(words, message):
    with pytest.raises(UserError, match=message):
        run(*words)


def test_list_tells_what_is_there_and_what_to_fetch(data, tmp_path, capsys):
    assert run("list", "digits", "--data-dir", data.root) == 0
    assert "ready" in capsys.readouterr().out
    assert run("list", "digits", "--data-dir", tmp_path / "none") == 0
    told = capsys.readouterr().out
    assert "lacks question-file, image-folder" in told and "scripts/quickstart.sh" in told
    assert run("list") == 0 and "digits" in capsys.readouterr().out
    assert run("--help") == 0 and "score TASK" in capsys.readouterr().out


def _port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_of_a_launcher_share_a_run(flags, data, tmp_path):
    (data.root / "images" / "3-0.png").unlink()
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(_port()), "-m", "llava.eval", "digits", *flags]
    command += ["--answers", str(tmp_path / "a.jsonl")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "3-0.png" in done.stderr, done.stderr[-3000:]  # one image is missing
    result = json.loads((tmp_path / "a.result.json").read_text())
    assert result["counts"]["answered"] == 11 and result["run"]["asked"] == 12
    records = [json.loads(one) for one in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [one["question_id"] for one in records] == [0, 1, 2, *range(4, 12)]
    run("answer", "digits", *flags, "--answers", tmp_path / "b.jsonl")
    alone = [json.loads(one)["text"] for one in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [one["text"] for one in records] == alone


@pytest.mark.parametrize("name", task_names())
def test_the_flags_of_every_task_go_with_those_of_the_program(name, tmp_path, capsys):
    task = task_named(name)
    for verb in ("answer", "score", "run"):
        parser = parser_of(verb, task)
        words = ["--answers", str(tmp_path / "a")] if verb == "score" else []
        data = read_data(task, parser.parse_args([*words, "--data-dir", str(tmp_path)]))
        assert data.root == tmp_path and set(data.options) <= {one.key for one in task.options}
    assert run("list", name, "--data-dir", tmp_path / "none") == 0
    told = capsys.readouterr().out
    assert all(f"--{one.key}: " in told for one in task.data)
    with pytest.raises(UserError):  # without its data: one sentence
        run(
            name,
            "--base-url",
            "http://127.0.0.1:9/v1",
            "--data-dir",
            tmp_path / "none",
            "--request-timeout",
            "1",
        )


def test_questions_that_were_not_asked_are_not_missed(flags, tmp_path, capsys):
    assert run("digits", *flags, "--answers", tmp_path / "a.jsonl", "--limit", "3") == 0
    told = capsys.readouterr().out
    assert "note: only 3 of 12 questions were asked" in told and "without an answer" not in told
    assert "only 3 of 12" in json.loads((tmp_path / "a.result.json").read_text())["notes"][-1]
