"""The answering programs of the reference: chunks together are the whole, records are its records."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from llava.eval.model_vqa import get_chunk, split_list
from llava.eval.model_vqa_mmbench import all_options, get_options, is_none
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


def test_a_loop_of_ones_own_over_the_loader_answers_like_the_library(
    checkpoints: Path, tmp_path: Path
) -> None:
    import llava
    from llava.eval.model_vqa_loader import CustomDataset, create_data_loader

    model = llava.load(checkpoints / "llava-tiny-v1.5", dtype="float32", template="llava_v1")
    for n in range(2):
        Image.new("RGB", (20 + n, 20), (80 * n, 20, 0)).save(tmp_path / f"{n}.png")
    rows = [{"image": f"{n}.png", "text": "What" + " is" * n} for n in range(2)]
    parts = (str(tmp_path), model.tokenizer, model.image_processor, model.model.config)
    loader = create_data_loader(rows, *parts, num_workers=0)
    for row, (ids, pixels, sizes) in zip(rows, loader, strict=True):
        assert ids.shape[0] == pixels.shape[0] == 1 and sizes == [(20 + int(row["image"][0]), 20)]
        found = model.model.generate(ids, images=pixels, image_sizes=sizes, max_new_tokens=5, do_sample=False)
        text = model.tokenizer.batch_decode(found, skip_special_tokens=True)[0].strip()
        image = tmp_path / row["image"]
        assert text == model.chat(row["text"], images=[image], temperature=0, max_new_tokens=5)
    with pytest.raises(UserError, match="batch_size is 2"):
        create_data_loader(rows, *parts, batch_size=2)
    with pytest.raises(UserError, match="conv-mode"):
        CustomDataset(rows, *parts, conv_mode="no such template")


def test_options_end_at_the_first_missing_cell() -> None:
    """A text that reads as missing hides itself and what follows, as in the reference."""
    row = {"A": "yes", "B": "None", "C": "no", "D": None}
    assert get_options(row, all_options) == ["yes"]
    assert get_options({**row, "B": "b"}, all_options) == ["yes", "b", "no"]
    assert [is_none(one) for one in (None, float("nan"), "nan", "NONE", "", 0, "none of them")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


def ask(
    program: str, words: Mapping[str, object], switches: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, object]]:
    """Run an answering program; returns the lines that it wrote."""
    from programs import PROGRAMS, start

    line = [f"--{key}={value}" for key, value in words.items()] + switches
    with pytest.raises(SystemExit) as ended:
        start(PROGRAMS[program], line, monkeypatch)
    assert ended.value.code == 0
    return [json.loads(one) for one in Path(str(words["answers-file"])).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("switches", [[], ["--all-rounds", "--single-pred-prompt", "--lang=cn"]])
def test_rows_of_mmbench(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switches: list[str]
) -> None:
    """Whole rows are parts, rotations of a row stay together; the line for the letter is not recorded."""
    sample_image = io.BytesIO()
    Image.new("RGB", (20, 20), (0, 90, 0)).save(sample_image, "PNG")
    image = base64.b64encode(sample_image.getvalue()).decode()
    rows = [f"{n}\tWhich {n}?\thint\ta\tb\t\t\t{image}" for n in range(3)]
    table = "\n".join(["index\tquestion\thint\tA\tB\tC\tD\timage", *rows])
    (tmp_path / "q.tsv").write_text(f"{table}\n")
    words = {
        **{"model-path": checkpoints / "llava-tiny-v1.5", "question-file": tmp_path / "q.tsv"},
        **{"answers-file": tmp_path / "a.jsonl", "temperature": 0, "num-chunks": 2, "chunk-idx": 0},
    }
    found = ask("model_vqa_mmbench", words, switches, monkeypatch)
    rounds = 2 if switches else 1
    assert [one["question_id"] for one in found] == [n for n in (0, 1) for _ in range(rounds)]
    assert [one["round_id"] for one in found] == list(range(rounds)) * 2
    assert found[0]["prompt"] == "hint\nWhich 0?\nA. a\nB. b"
    assert found[0]["option_char"] == ["A", "B"] and found[0]["options"] == ["a", "b"]
    if switches:
        assert found[1]["prompt"] == "hint\nWhich 0?\nA. b\nB. a" and found[1]["option_char"] == ["B", "A"]


@pytest.mark.slow
@pytest.mark.parametrize("switches", [[], ["--single-pred-prompt"]])
def test_dialogs_of_science_qa(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switches: list[str]
) -> None:
    """With and without an image; here the line for the letter is recorded, as in the reference."""
    Image.new("RGB", (20, 20), (0, 90, 0)).save(tmp_path / "i.png")
    dialogs = [
        {"id": "7", "conversations": [{"from": "human", "value": "Which?\n<image>"}], "image": "i.png"},
        {"id": "8", "conversations": [{"from": "human", "value": "And which?"}]},
    ]
    (tmp_path / "q.json").write_text(json.dumps(dialogs))
    words = {
        **{"model-path": checkpoints / "llava-tiny-v1.5", "question-file": tmp_path / "q.json"},
        **{"image-folder": tmp_path, "answers-file": tmp_path / "a.jsonl", "temperature": 0},
    }
    found = ask("model_vqa_science", words, switches, monkeypatch)
    line = "\nAnswer with the option's letter from the given choices directly." if switches else ""
    assert [one["prompt"] for one in found] == [f"<image>\nWhich?{line}", f"And which?{line}"]
    assert [one["question_id"] for one in found] == ["7", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_questions_of_qbench(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    """The record is the question's own with `response`; the reference's program is lost."""
    Image.new("RGB", (20, 20), (0, 90, 0)).save(tmp_path / "i.png")
    row = {"img_path": "i.png", "question": "Is it sharp?", "candidates": ["Yes", "No"], "type": 0}
    (tmp_path / "q.json").write_text(json.dumps([row]))
    words = {
        **{"model-path": checkpoints / "llava-tiny-v1.5", "questions-file": tmp_path / "q.json"},
        **{"image-folder": tmp_path, "answers-file": tmp_path / "a.jsonl", "lang": language},
    }
    (found,) = ask("model_vqa_qbench", words, [], monkeypatch)
    assert list(found) == [*row, "response"] and found["question"] == "Is it sharp?"


@pytest.mark.parametrize(
    "name, given, used",
    [
        ("llava-plain-7b", "llava_v1", "llava_v1_mmtag"),
        ("LLaVA-Plain-13b", "v1", "v1_mmtag"),
        ("llava-plain-7b", "v1_mmtag", "v1_mmtag"),
        ("llava-plain-finetune-7b", "llava_v1", "llava_v1"),
        ("llava-v1.5-7b", "llava_v1", "llava_v1"),
    ],
)
def test_plain_models_are_asked_with_tags(
    name: str, given: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The loader's program knows them by their name, and says so."""
    from programs import PROGRAMS, start

    asked = []
    monkeypatch.setattr(
        "llava.eval.doors.vqa_loader.answer_file", lambda args, **more: asked.append(more["conv_mode"]) or 0
    )
    line = [f"--model-path={tmp_path}/{name}", f"--conv-mode={given}"]
    with pytest.raises(SystemExit) as ended:
        start(PROGRAMS["model_vqa_loader"], line, monkeypatch)
    assert (ended.value.code, asked) == (0, [used])
    told = f"seems to be a plain model; its template is {used}"
    assert (told in capsys.readouterr().out) == (given != used)


@pytest.mark.slow
def test_text_questions_for_a_language_model(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has no vision tower; the record has no prompt, and is what the review programs read."""
    from llava.eval.model_qa import eval_model
    from llava.eval.tasks.judged.vicuna80 import Vicuna80

    monkeypatch.setattr(Vicuna80, "max_new_tokens", 4)
    rows = [{"question_id": n, "text": f"What is {n}?", "category": "generic"} for n in (81, 82)]
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    names = (str(checkpoints / "vicuna-tiny"), str(tmp_path / "q.jsonl"), str(tmp_path / "a.jsonl"))
    assert eval_model(*names) == 0
    before = (tmp_path / "a.jsonl").read_bytes()
    found = [json.loads(one) for one in before.splitlines()]
    assert [list(one) for one in found] == [["question_id", "text", "answer_id", "model_id", "metadata"]] * 2
    assert [one["question_id"] for one in found] == [81, 82] and found[0]["model_id"] == "vicuna-tiny"
    assert eval_model(*names) == 0 and (tmp_path / "a.jsonl").read_bytes() == before
