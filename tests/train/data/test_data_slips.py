"""Slips in data: unread keys, folders, NaN, duplicates, packed and misnamed files; in every kind of file."""

from __future__ import annotations

import gzip
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recorded_training
from doctoring import doctor
from recorded_training import dialog

from llava.train.data import arrow_cache
from llava.train.data.dataset import LazySupervisedDataset
from llava.train.data.samples import SampleMaker
from llava.train.data.start_checks import NO_IMAGE
from llava.train.data.start_checks import check_data as check_start
from llava.train.data.streaming import StreamingDataset
from llava.train.data.table import RecordTable, load_records
from llava.train.records import DataError, find_fault, leaving_name, name_record, unread_media_key
from llava.utils import UserError

ASK, ANSWER = ("human", "<image>\nWhat?"), ("gpt", "That.")
TURNS = dialog(ASK, ANSWER)
TEXT = dialog(("human", "Hi."), ANSWER)
KINDS = ("json", "jsonl", "json.gz", "jsonl.gz", "parquet", "cached", "mixture", "folder")
NAN = float("nan")


def write(folder: Path, kind: str, records: list[dict[str, Any]]) -> Path:
    """Write records as a kind of data; returns what --data_path is."""
    ending = {"cached": "json", "mixture": "json", "folder": "jsonl"}.get(kind, kind)
    path = folder / (f"shards/d.{ending}" if kind == "folder" else f"d.{ending}")
    path.parent.mkdir(exist_ok=True)
    if kind == "parquet":
        from pyarrow import Table, parquet

        columns = list({key: None for one in records for key in one})
        rows = [{key: one.get(key) for key in columns} for one in records]
        parquet.write_table(Table.from_pylist(rows), path)
        return path
    lines = [json.dumps(one) for one in records]
    text = "\n".join(lines) if "jsonl" in ending else json.dumps(records)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    if kind == "mixture":
        path = folder / "mix.yaml"
        path.write_text(f"- path: d.{ending}\n")
    return path.parent if kind == "folder" else path


def load(path: Path, kind: str, **options: Any) -> RecordTable:
    return load_records(path, cache_dir=path.parent / "tables" if kind == "cached" else None, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    recorded_training.sample_image(28, 28, 0).save(folder / "p.png")
    return folder


# ---- keys ----


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"images": ["a.png"]}, "images"),
        ({"image_path": "a.png"}, "image_path"),
        ({"img": "a.png"}, "img"),
        ({"Image": "a.png"}, "Image"),
        ({"imgae": "a.png"}, "imgae"),
        ({"picture": {"bytes": b"1"}}, "picture"),
        ({"video": "a.mp4"}, None),
        ({"videos": ["a.mp4"]}, "videos"),
        ({"Video": "a.mp4"}, "Video"),
        ({"image": "a.png", "video_path": "a.mp4"}, "video_path"),
        ({"video": "a.mp4", "video_path": "a.mp4", "images": ["a.png"]}, None),
        ({"video": "a.mp4", "audio": "a.wav"}, "audio"),
        ({"image": "a.png", "images": ["a.png"]}, None),
        ({"images": []}, None),
        ({"images": None}, None),
        ({"image_id": "a17", "source": "web", "stage": "two", "message": "x", "model": ""}, None),
        ({"image": "a.png"}, None),
    ],
)
def test_keys_that_resemble_image(fields: dict[str, Any], found: str | None) -> None:
    assert unread_media_key({"id": 1, "conversations": TURNS, **fields}) == found


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_doctor_name_an_unread_key(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"id": f"r{k}", "images": "p.png", "conversations": TEXT} for k in range(3)]
    records.insert(0, {"id": "t", "conversations": TEXT})
    path = write(tmp_path, kind, records)
    load(path, kind)
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "3 record(s), the first is record 1 (id 'r0')" in warning
    assert "'images' is not read, so it trains as text; expected 'image'" in warning
    assert doctor("--data_path", path, "--vision_tower", "any", "--image_folder", tmp_path) == 0
    out = capsys.readouterr().out
    assert "note unread_key: 3, the first is" in out and "'images' is not read" in out
    assert "no record has an image" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {path: d.json, image_path: x}", "'image_path'; did you mean 'image_folder'"),
        ("- {jsonpath: d.json}", "'jsonpath'; did you mean 'json_path'"),
        ("- {path: d.json, repeat: 2}", "'repeat'; did you mean 'weight'"),
        ("- {path: d.json, Weight: 2}", "'Weight'; did you mean 'weight'"),
        ("datasets: [d.json]\ndataset_weight: 3", "'dataset_weight' beside 'datasets'"),
    ],
)
def test_keys_of_mixtures(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "json", [{"conversations": TEXT}])
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_records(tmp_path / "m.yaml")


def test_dialogs_under_another_key_are_named() -> None:
    assert "it has 'messages', which is not read" in find_fault({"messages": TEXT})
    assert "entry of a mixture, which is a .yaml file" in find_fault({"path": "a.json"})


# ---- folders ----


def data_args(**fields: Any) -> Any:
    given = {
        "image_folder": None,
        "video_folder": None,
        "on_bad_sample": "error",
        "allow_images_outside_folder": False,
    }
    return SimpleNamespace(**{**given, "is_multimodal": True, "shuffle_buffer": 1, **fields})


def start(path: Path, *, template: str = "v1", tower: str | None = "any", **fields: Any) -> None:
    """Check data as train() does before it loads a model."""
    args = data_args(**fields)
    dataset = LazySupervisedDataset(str(path), None, args)
    check_start(dataset, args, vision_tower=tower, template=template)


def test_a_dialog_that_does_not_fit_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    write(tmp_path, "json", [{"id": k, "conversations": TEXT} for k in range(10)])
    (tmp_path / "m.yaml").write_text("- {path: d.json, sampling_strategy: end:3}\n- d.json\n")
    with pytest.raises(UserError, match=f"^{tmp_path / 'd.json'}: record 7 .id 7.: the plain template"):
        start(tmp_path / "m.yaml", template="plain", tower=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_missing_folder_is_seen_at_once(tmp_path: Path, kind: str, policy: str) -> None:
    path = write(tmp_path, kind, [{"id": "a", "image": "p.png", "conversations": TURNS}])
    for folder, message in (
        (None, r"record 0 \(id 'a'\) has an image, 'p.png'; name its folder with --image_folder"),
        ("/none", r"image folder /none does not exist.*record 0 \(id 'a'\).*check --image_folder"),
        (__file__, "test_data_slips.py is no folder"),
        ("", r"has an image, 'p.png', which is relative and not there, and --image_folder is \"\"; name its"),
    ):
        with pytest.raises(DataError, match=message):
            start(path, image_folder=folder, on_bad_sample=policy)
        with pytest.raises(UserError, match=message):
            doctor("--data_path", path, *(() if folder is None else ("--image_folder", folder)))
    with pytest.raises(UserError, match="--vision_tower is missing"):
        start(path, tower=None, image_folder=str(tmp_path))
    start(path, image_folder=str(tmp_path))


def test_each_folder_of_a_mixture_is_looked_at(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"image": "p.png", "conversations": TURNS}]))
    (tmp_path / "m.yaml").write_text("- {path: a.json, image_folder: .}\n- {path: b.json, image_folder: x}\n")
    with pytest.raises(DataError, match=r"the image folder \S+/x does not exist, and \S+b.json: record 0"):
        start(tmp_path / "m.yaml")


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [
        ("{images}/p.png", "", None),
        ("{images}/p.png", "{images}", None),
        ("{images}/p.png", "/", None),
        ("x/../p.png", "{images}", None),
        ("..p.png", "{images}", None),
        ("{images}/p.png", "{other}", 'is absolute .*--image_folder "" .*--allow_images_outside_folder True'),
        ("../images/p.png", "{images}", "climbs .*--allow_images_outside_folder True"),
        ("a/../../p.png", "{images}", "climbs"),
    ],
)
def test_images_outside_of_the_folder(
    images: Path, tmp_path: Path, name: str, folder: str, reason: str | None
) -> None:
    name, folder = (one.format(images=images, other=tmp_path) for one in (name, folder))
    path = write(tmp_path, "json", [{"image": name, "conversations": TURNS}])
    report = tmp_path / "r.json"
    flags = ("--data_path", path, "--image_folder", folder, "--json", report)
    if reason is None:
        start(path, image_folder=folder)
        doctor(*flags)
        assert "image_outside" not in json.loads(report.read_text())["fault_counts"]
        return
    with pytest.raises(DataError, match=reason):
        start(path, image_folder=folder)
    with pytest.raises(DataError, match=reason):  # also where nobody has looked before
        SampleMaker(None, data_args(image_folder=folder))._places({"image": name}, None)
    assert doctor(*flags) == 1
    assert json.loads(report.read_text())["fault_counts"] == {"image_outside": 1}
    report.unlink()
    start(path, image_folder=folder, allow_images_outside_folder=True)
    doctor(*flags, "--allow_images_outside_folder", "True")
    assert "image_outside" not in json.loads(report.read_text())["fault_counts"]


def test_names_that_leave_are_known_from_the_table(tmp_path: Path) -> None:
    assert leaving_name({"image": ["a.png", "../b.png"]}) == "../b.png"
    assert leaving_name({"image": "a/../b.png"}) is None and leaving_name({}) is None


def test_a_run_without_a_single_image_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "json", [{"conversations": TEXT}])
    start(path)
    assert NO_IMAGE in caplog.text
    caplog.clear()
    start(path, tower=None)
    assert not caplog.text


@pytest.mark.parametrize(
    ("record", "folder", "tower", "template", "message"),
    [
        ({"image": "p.png", "conversations": TURNS}, None, "any", "v1", "row 0 has an image, 'p.png'"),
        ({"image": "p.png", "conversations": TURNS}, "/none", "any", "v1", "/none does not exist"),
        ({"image": "p.png", "conversations": TURNS}, "/", None, "v1", "--vision_tower is missing"),
        ({"conversations": TEXT * 2}, None, "any", "plain", "row 0: the plain template .* found 4 turns"),
        ({"image": {"bytes": b"1", "path": "a"}, "conversations": TURNS}, None, "any", "v1", None),
    ],
)
def test_a_stream_is_looked_at_before_it_is_read(
    tmp_path: Path, record: Any, folder: str | None, tower: str | None, template: str, message: str | None
) -> None:
    path = write(tmp_path, "parquet", [record])
    args = data_args(image_folder=folder)
    stream = StreamingDataset(str(path), None, args)
    if message is None:
        check_start(stream, args, vision_tower=tower, template=template)
        return
    with pytest.raises(UserError, match=message):
        check_start(stream, args, vision_tower=tower, template=template)


# ---- what the doctor notes ----


NOTED: list[tuple[str, dict[str, Any]]] = [
    ("nan", {"score": NAN, "conversations": TEXT}),
    ("nan", {"more": {"a": [1, -math.inf]}, "conversations": TEXT}),
    ("hidden_characters", {"conversations": dialog(("human", "a\u200bb"), ANSWER)}),
    ("hidden_characters", {"conversations": dialog(("human", "a\u202eb"), ANSWER)}),
    ("hidden_characters", {"conversations": dialog(("human", "a"), ("gpt", "b\0"))}),
    ("mark_in_answer", {"image": "p.png", "conversations": dialog(("human", "a"), ("gpt", "<image> b"))}),
]


@pytest.mark.parametrize(("kind", "record"), NOTED)
def test_notes(images: Path, tmp_path: Path, kind: str, record: dict[str, Any]) -> None:
    path, report = write(tmp_path, "json", [record]), tmp_path / "r.json"
    assert doctor("--data_path", path, "--image_folder", images, "--json", report) == 0
    assert json.loads(report.read_text())["note_counts"] == {kind: 1}


def test_joiners_of_scripts_and_emoji_are_no_slip(tmp_path: Path) -> None:
    record = {
        "conversations": dialog(("human", "\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f52c\n\t"), ANSWER)
    }
    report = tmp_path / "r.json"
    doctor("--data_path", write(tmp_path, "json", [record]), "--json", report)
    assert json.loads(report.read_text())["note_counts"] == {}


@pytest.mark.parametrize("kind", KINDS)
def test_duplicate_ids_are_noted(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, [{"id": own, "conversations": TEXT} for own in ("a", "b", "a", "a")])
    report = tmp_path / "r.json"
    assert doctor("--data_path", path, "--json", report) == 0
    notes = json.loads(report.read_text())["notes"]
    assert [(one["index"], one["kind"]) for one in notes] == [(2, "duplicate_id"), (3, "duplicate_id")]
    assert "record 0 (id 'a')" in notes[1]["reason"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_nan_is_never_written(tmp_path: Path, kind: str, ending: str) -> None:
    path = write(
        tmp_path, kind, [{"id": k, "score": NAN if k else 0.5, "conversations": TEXT} for k in (0, 1)]
    )
    fixed = tmp_path / f"fixed{ending}"
    doctor("--data_path", path, "--fix", fixed)

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    text = fixed.read_text()
    texts = text.splitlines() if ending == ".jsonl" else [text]
    found = [json.loads(one, parse_constant=refuse) for one in texts]
    assert [one["score"] for one in (found if ending == ".jsonl" else found[0])] == [0.5, None]


def test_numbers_too_large_for_json_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('[{"score": 1e999, "conversations": ' + json.dumps(TEXT) + "}]")
    doctor("--data_path", tmp_path / "d.json", "--fix", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())[0]["score"] is None


def test_an_image_that_is_nan_or_null_or_an_address() -> None:
    for image in (NAN, None):
        assert "or no 'image' for a record of text" in find_fault({"image": image, "conversations": TURNS})
    for address in ("https://x.org/a.png", "s3://b/a.png", "data:image/png;base64,AA", ["HTTP://x/a.png"]):
        fault = find_fault({"image": address, "conversations": TURNS})
        assert "training reads files: download it" in fault


def test_lines_and_names_have_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"id": "x" * 5000, "image": "y" * 200 + "/" + "z" * 5000, "conversations": TURNS}] * 50
    path, report = write(tmp_path, "json", records), tmp_path / "r.json"
    assert doctor("--data_path", path, "--image_folder", tmp_path, "--json", report) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 30 and max(map(len, lines)) < 700
    assert len(json.loads(report.read_text())["faults"]) == 50
    assert len(name_record(0, records[0])) < 110


def test_plain_with_more_turns_needs_no_tokenizer(tmp_path: Path) -> None:
    path, report = write(tmp_path, "json", [{"conversations": TEXT * 2}]), tmp_path / "r.json"
    assert doctor("--data_path", path, "--version", "plain", "--json", report) == 1
    (fault,) = json.loads(report.read_text())["faults"]
    assert fault["kind"] == "template" and "found 4 turns" in fault["reason"]
    with pytest.raises(UserError, match="--version is 'plian'; .*did you mean 'plain'"):
        doctor("--data_path", path, "--version", "plian")


# ---- files ----


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'[{"a": 1}]', r"is a JSON list, .*; let it end in \.json$"),
        ("d.jsonl", b'\n[\n{"a": 1},\n{"a": 2}]', r"let it end in \.json$"),
        ("d.jsonl.gz", gzip.compress(b'[{"a": 1}]', mtime=0), r"let it end in \.json\.gz$"),
        ("d.json", b'[{"conversations": 1},\n]', "remove the comma in front of the closing bracket"),
        ("d.json", b'[{"conversations": 1,}]', "remove the comma in front of the closing bracket"),
        ("d.json", b"", "the file is empty"),
        ("d.jsonl", b"", "is an empty file"),
        ("d.json", gzip.compress(b"[]", mtime=0), r"let its name end in \.json\.gz"),
        ("d.jsonl", gzip.compress(b"{}", mtime=0), r"let its name end in \.jsonl\.gz"),
        ("d.json.gz", gzip.compress(b"[1, 2, 3]" * 99, mtime=0)[:-12], "is not a whole gzip file"),
        ("d.json.gz", b"[1, 2]", "is not a whole gzip file .* rename it"),
        ("d.json.zst", b"[1, 2]", "is packed in a way that is not read here"),
    ],
)
def test_files_that_are_named_or_written_wrongly(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_records(path)
    with pytest.raises(DataError, match=message):
        load_records(path, cache_dir=tmp_path / "tables")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_the_same_records(tmp_path: Path, kind: str) -> None:
    records = [{"id": k, "conversations": TEXT, "note": "\u2603" * k} for k in range(1, 5)]
    assert list(load(write(tmp_path, kind, records), kind)) == records


def test_a_large_packed_file_gets_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "jsonl.gz", [{"id": k, "conversations": TEXT} for k in range(100)])
    monkeypatch.setattr(arrow_cache, "IN_MEMORY_BYTES", path.stat().st_size + 1)
    load_records(path)
    assert len(list((tmp_path / ".llava_cache").glob("*.arrow"))) == 1


def test_a_stream_warns_of_unread_keys_and_of_having_no_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "parquet", [{"img": "p.png", "conversations": TEXT}] * 2)
    stream = StreamingDataset(str(path), None, data_args())
    monkeypatch.setattr(stream.maker, "make", lambda *_, **__: {})
    samples = iter(stream)
    for _ in range(5):
        next(samples)
    (unread,) = [one.getMessage() for one in caplog.records if "'img' is not read" in one.getMessage()]
    assert "d.parquet: row " in unread
    (none,) = [one.getMessage() for one in caplog.records if "no sample of the stream" in one.getMessage()]
    assert "--vision_tower is given" in none
