"""The data doctor: planted faults are found, all of them and nothing else; what it writes; its exit codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import recorded_training
from doctoring import doctor
from recorded_training import dialog
from warming import python

from llava.train.data.check_settings import CheckSettings
from llava.train.data.table import load_records
from llava.train.data.tokens import ImageTokens, TokenChecker
from llava.utils import UserError

LIMIT = 120


def good(k: int) -> dict[str, Any]:
    """Make a record without fault; every third is a text."""
    turns = dialog(("human", "<image>\nWhere is it?"), ("gpt", f"It is at place {k}."))
    if k % 3 == 2:
        turns[0]["value"] = "Where is it?"
        return {"id": f"g{k}", "conversations": turns}
    return {"id": f"g{k}", "image": f"p{k % 4}.png", "conversations": turns}


def with_turns(*pairs: tuple[Any, Any], image: Any = "p0.png") -> dict[str, Any]:
    return {"image": image, "conversations": dialog(*pairs)}


ASK, ANSWER = ("human", "<image>\nWhat?"), ("gpt", "That.")
LONG = ("gpt", "It is a long story. " * 60)
# the faults that can be told without a tokenizer: kind, part of the reason, record
PLANTED: list[tuple[str, str, Any]] = [
    ("not_an_object", "a JSON number", 7),
    ("no_conversations", "no 'conversations'", {"id": "x"}),
    ("no_conversations", "is empty", {"conversations": []}),
    ("bad_turn", "turn 1 is 'hello'", {"conversations": [*dialog(ASK), "hello"]}),
    ("role", "from 'user'", with_turns(("user", "<image> hi"), ANSWER)),
    ("role_order", "turns 1 and 2", with_turns(ASK, ANSWER, ANSWER)),
    ("not_text", "value of turn 1 is a JSON number", with_turns(ASK, ("gpt", 3))),
    ("empty_text", "turn 1, from 'gpt', is empty", with_turns(ASK, ("gpt", " \n"))),
    ("image_count", "1 image(s) but 0", with_turns(("human", "What?"), ANSWER)),
    ("image_count", "2 image(s) but 1", with_turns(ASK, ANSWER, image=["p0.png", "p1.png"])),
    ("image_missing", "gone.png", with_turns(ASK, ANSWER, image="gone.png")),
    (
        "image_corrupt",
        "broken.png' is damaged",
        with_turns(ASK, ANSWER, image="broken.png"),
    ),
    ("image_corrupt", "empty.png", with_turns(ASK, ANSWER, image="empty.png")),
    ("bad_image_name", "'image' is 3", with_turns(ASK, ANSWER, image=3)),
    ("bad_image_name", "expected a file name", with_turns(ASK, ANSWER, image="a\0b.png")),
    ("not_text", "half a character", with_turns(ASK, ("gpt", "\ud83d, or so"))),
]
# and those that it takes
TOKEN_FAULTS: list[tuple[str, str, Any]] = [
    ("too_long", "16 of them for images", with_turns(ASK, LONG)),
    ("nothing_supervised", "no token", with_turns(ASK, ("gpt", "He said: ASSISTANT: yes"))),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images, a cut one and an empty one."""
    folder = tmp_path_factory.mktemp("images")
    for k in range(4):
        recorded_training.sample_image(28 + k, 28, k).save(folder / f"p{k}.png")
    (folder / "broken.png").write_bytes((folder / "p0.png").read_bytes()[:90])
    (folder / "empty.png").write_bytes(b"")
    return folder


def write(folder: Path, planted: list[tuple[str, str, Any]]) -> tuple[Path, dict[int, tuple[str, str]]]:
    """Write data.json, each planted record between good ones; returns it, and what is to be found where."""
    records, expected = [good(0)], {}
    for k, (kind, reason, record) in enumerate(planted):
        expected[len(records)] = (kind, reason)
        records += [record, good(k + 1)]
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path, expected


def assert_found(report: dict[str, Any], expected: dict[int, tuple[str, str]]) -> None:
    assert {one["index"]: one["kind"] for one in report["faults"]} == {k: v[0] for k, v in expected.items()}
    assert len(report["faults"]) == len(expected) == report["faulty_records"]
    for one in report["faults"]:
        assert expected[one["index"]][1] in one["reason"]


def test_planted_faults_are_found_and_nothing_else(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, expected = write(tmp_path, PLANTED)
    before = path.read_bytes()
    fixed, report = tmp_path / "fixed.json", tmp_path / "report.json"
    flags = ("--data_path", path, "--image_folder", images)
    assert doctor(*flags, "--fix", fixed, "--json", report) == 1
    assert_found(json.loads(report.read_text()), expected)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("record 1: not_an_object: ")
    assert f"{len(json.loads(before))} records checked, {len(PLANTED)} of them with a fault" in lines
    assert "  fault image_corrupt: 2" in lines
    # the clean part is what remains, in order, and has no fault itself
    kept = [record for k, record in enumerate(json.loads(before)) if k not in expected]
    assert json.loads(fixed.read_text()) == kept
    assert path.read_bytes() == before
    assert doctor("--data_path", fixed, "--image_folder", images) == 0


def test_faults_of_tokens_are_found_with_a_model(checkpoints: Path, images: Path, tmp_path: Path) -> None:
    path, expected = write(tmp_path, TOKEN_FAULTS)
    report = tmp_path / "report.json"
    model = ("--model_name_or_path", checkpoints / "vicuna-tiny", "--vision_tower", checkpoints / "tiny-clip")
    flags = ("--data_path", path, "--image_folder", images, "--json", report)
    assert doctor(*flags, *model, "--model_max_length", LIMIT) == 1
    assert_found(json.loads(report.read_text()), expected)


def test_a_sample_at_the_limit_is_not_too_long(checkpoints: Path, images: Path) -> None:
    record = with_turns(ASK, ("gpt", "one two three"))
    counts = []
    for limit in (10, 120):
        settings = CheckSettings(
            data_path="",
            model_name_or_path=str(checkpoints / "vicuna-tiny"),
            vision_tower=str(checkpoints / "tiny-clip"),
            model_max_length=limit,
        )
        checker = TokenChecker(settings)
        faults = list(checker.check(record, [(28, 28)]))
        counts.append([fault.kind for fault in faults])
        if faults:
            length = int(faults[0].reason.split()[2])
    assert counts == [["too_long"], []]
    ids = checker.maker.encode(record)["input_ids"]
    assert length == len(ids) - 1 + checker.image_tokens.count((28, 28))
    for limit, kinds in ((length, []), (length - 1, ["too_long"])):
        checker.limit = limit
        assert [fault.kind for fault in checker.check(record, [(28, 28)])] == kinds


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
@pytest.mark.parametrize("size", [(28, 28), (100, 30), (33, 47), (10, 300)])
def test_image_tokens_are_those_of_the_model(checkpoints: Path, merge: str, size: tuple[int, int]) -> None:
    from types import SimpleNamespace

    import torch

    from llava.mm_utils import process_images
    from llava.model.builder import load_pretrained_model

    path = checkpoints / "llava-tiny-v1.6"
    _, model, processor, _ = load_pretrained_model(str(path), None, "llava-tiny-v1.6", device="cpu")
    model.config.mm_patch_merge_type = merge
    arguments = SimpleNamespace(
        image_aspect_ratio="anyres", image_grid_pinpoints=model.config.image_grid_pinpoints
    )
    pixels = process_images([recorded_training.sample_image(*size, 1)], processor, arguments)
    ids = torch.tensor([[1, -200]])
    embeds = model.prepare_inputs_labels_for_multimodal(
        ids, None, None, None, None, pixels.to(model.dtype), image_sizes=[size]
    )[4]
    settings = CheckSettings(
        data_path="",
        model_name_or_path=str(path),
        vision_tower=str(checkpoints / "tiny-clip"),
        image_aspect_ratio="anyres",
        mm_patch_merge_type=merge,
    )
    assert embeds.shape[1] == 1 + ImageTokens(settings).count(size)


def test_images_in_tiles_are_counted_by_the_grids_of_the_flag(
    checkpoints: Path, images: Path, tmp_path: Path
) -> None:
    """A base LLM brings no grids; without the flag the doctor says what training would say."""
    path, report = tmp_path / "d.json", tmp_path / "r.json"
    path.write_text(json.dumps([with_turns(ASK, ANSWER)]))
    flags = (
        "--data_path",
        path,
        "--image_folder",
        images,
        "--json",
        report,
        "--image_aspect_ratio",
        "anyres",
    )
    model = ("--model_name_or_path", checkpoints / "vicuna-tiny", "--vision_tower", checkpoints / "tiny-clip")
    with pytest.raises(UserError, match="anyres needs tile grids"):
        doctor(*flags, *model)
    with pytest.raises(UserError, match="no multiple of 56"):
        doctor(*flags, *model, "--image_grid_pinpoints", "[[56,100]]")
    found = []
    for grids in ("[[56,56]]", "[[56,112]]"):
        assert doctor(*flags, *model, "--model_max_length", 8, "--image_grid_pinpoints", grids) == 1
        found.append(json.loads(report.read_text())["faults"][0]["reason"])
        report.unlink()
    assert "32 of them for images" in found[0] and "48 of them for images" in found[1]  # 16 for each tile


def test_answers_are_found_as_the_flag_says(checkpoints: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"conversations": dialog(("human", "Hi."), ("gpt", "So ASSISTANT: yes"))}]))
    flags = ("--data_path", path, "--model_name_or_path", checkpoints / "vicuna-tiny")
    assert [doctor(*flags, "--label_masks", masks) for masks in ("reference", "spans")] == [1, 0]


def test_notes_do_not_count_as_faults(tmp_path: Path) -> None:
    records = [
        {"conversations": dialog(("gpt", "Hello."), ("human", "Hi."), ("gpt", "Ask."))},
        {"conversations": dialog(("human", "What does <image> mean?"), ANSWER)},
        {"conversations": dialog(("human", "Hi."), ANSWER, ("human", "And?"))},
    ]
    path, report = tmp_path / "d.jsonl", tmp_path / "r.json"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert doctor("--data_path", path, "--json", report) == 0
    notes = json.loads(report.read_text())["notes"]
    assert [(one["index"], one["kind"]) for one in notes] == [
        (0, "leading_answer"),
        (1, "stray_mark"),
        (2, "no_last_answer"),
    ]


def test_lines_that_are_no_json_are_named_by_their_number(tmp_path: Path) -> None:
    path, fixed, report = tmp_path / "d.jsonl", tmp_path / "f.jsonl", tmp_path / "r.json"
    record = {"conversations": dialog(("human", "Hi."), ANSWER)}
    path.write_text(json.dumps(record) + "\n{oops\n\n" + json.dumps(record) + "\n")
    assert doctor("--data_path", path, "--fix", fixed, "--json", report) == 1
    (fault,) = json.loads(report.read_text())["faults"]
    assert (fault["index"], fault["kind"]) == (1, "not_json") and "line 2" in fault["reason"]
    assert [json.loads(line) for line in fixed.read_text().splitlines()] == [record, record]


def test_records_of_shards_are_named_by_file_and_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, bad = {"conversations": dialog(("human", "Hi."), ANSWER)}, {"id": "b"}
    for name, records in (("a.json", [fine, fine]), ("b.json", [fine, bad])):
        (tmp_path / name).write_text(json.dumps(records))
    mixture = tmp_path / "mix.yaml"
    mixture.write_text("- {path: a.json, max_samples: 1}\n- {path: b.json, weight: 3}\n")
    for path in (mixture, tmp_path / "*.json"):
        assert doctor("--data_path", path) == 1
        out = capsys.readouterr().out
        assert f"{tmp_path / 'b.json'}: record 1 (id 'b'): no_conversations" in out
        assert "4 records checked, 1 of them" in out


@pytest.mark.parametrize("flag", ["data_path", "data_cache_dir", "model_name_or_path", "vision_tower"])
def test_an_empty_name_is_refused(flag: str, tmp_path: Path) -> None:
    """As of a variable that a script has not set; without its model, nothing would be counted."""
    path, _ = write(tmp_path, PLANTED[:1])
    with pytest.raises(UserError, match=f'--{flag} is ""; expected a name, or no such flag'):
        doctor("--data_path", path, f"--{flag}", "")


def test_what_cannot_be_done_is_said(images: Path, tmp_path: Path) -> None:
    path, _ = write(tmp_path, PLANTED[:1])
    flags = ("--data_path", path, "--image_folder", images)
    with pytest.raises(UserError, match="which is --data_path as well"):
        doctor(*flags, "--fix", tmp_path / "." / "data.json")
    (tmp_path / "old.json").write_text("x")
    with pytest.raises(UserError, match="old.json exists"):
        doctor(*flags, "--fix", tmp_path / "old.json")
    with pytest.raises(UserError, match="ends in .json or .jsonl"):
        doctor(*flags, "--fix", tmp_path / "out.parquet")
    with pytest.raises(UserError, match=r"record 0 \(id 'g0'\) has an image, 'p0.png'; name its folder"):
        doctor("--data_path", path)
    with pytest.raises(UserError, match="expected at least 1"):
        doctor(*flags, "--workers", 0)
    with pytest.raises(UserError, match="unrecognized arguments: --fixx"):
        doctor(*flags, "--fixx", "out.json")
    assert (tmp_path / "old.json").read_text() == "x"


@pytest.mark.slow
def test_the_program_with_several_processes(images: Path, tmp_path: Path) -> None:
    path, expected = write(tmp_path, PLANTED * 20)
    report = tmp_path / "report.json"
    command = [python(), "-m", "llava.train.check_data", "--data_path", str(path), "--workers", "2"]
    command += ["--image_folder", str(images), "--json", str(report)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert_found(json.loads(report.read_text()), expected)
    ended = subprocess.run([*command[:5], "--fix", str(path)], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_a_clean_part_is_read_by_training(images: Path, tmp_path: Path) -> None:
    path, expected = write(tmp_path, PLANTED)
    fixed = tmp_path / "fixed.jsonl"
    doctor("--data_path", path, "--image_folder", images, "--fix", fixed)
    records = load_records(fixed)
    assert len(records) == len(json.loads(path.read_text())) - len(expected)
