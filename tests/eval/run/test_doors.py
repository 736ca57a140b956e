"""The answering programs of the reference: chunks together are the whole, records are its records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llava.eval.model_vqa import get_chunk, split_list
from llava.utils import UserError


@pytest.mark.parametrize("count, n", [(10, 3), (7, 7), (5, 8), (9, 1), (12, 5), (0, 2)])
def test_chunks_together_are_the_whole(count: int, n: int) -> None:
    items = list(range(count))
    chunks = [list(get_chunk(items, n, k)) for k in range(n)]
    assert sum(chunks, []) == items
    assert [one for one in chunks if one] == [list(one) for one in split_list(items, n)]
    with pytest.raises(UserError, match="--chunk-idx"):
        get_chunk(items, n, n)


@pytest.mark.slow
def test_the_programs_write_the_records_of_the_reference(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from programs import PROGRAMS, start

    rows = []
    for n in range(3):
        Image.new("RGB", (20, 20 + n), (80 * n, 20, 0)).save(tmp_path / f"{n}.png")
        rows.append({"question_id": n, "image": f"{n}.png", "text": f"What is {n}?"})
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    found = []
    for k, program in ((0, "model_vqa_loader"), (1, "model_vqa_loader"), (4, "model_vqa_loader")):
        words = {
            **{"model-path": checkpoints / "llava-tiny-v1.5", "question-file": tmp_path / "q.jsonl"},
            **{"image-folder": tmp_path, "answers-file": tmp_path / f"a/5_{k}.jsonl", "num-chunks": 5},
            **{"chunk-idx": k, "temperature": 0, "max_new_tokens": 4},
        }
        with pytest.raises(SystemExit) as ended:
            start(PROGRAMS[program], [f"--{key}={value}" for key, value in words.items()], monkeypatch)
        assert ended.value.code == 0, capsys.readouterr().err
        found += [json.loads(one) for one in (tmp_path / f"a/5_{k}.jsonl").read_text().splitlines()]
    assert [one["question_id"] for one in found] == [0, 1]
    assert list(found[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert found[0]["prompt"] == "What is 0?" and found[0]["model_id"] == "llava-tiny-v1.5"
