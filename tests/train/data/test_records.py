"""What a record may be, and how files of records become one sequence: formats, shards, mixtures, tables."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_training import dialog

from llava import atomic
from llava.train.data import arrow_cache, readers
from llava.train.data.sources import find_sources
from llava.train.data.table import RecordTable, load_records
from llava.train.records import DataError, find_fault, find_faults

TURNS = dialog(("human", "Where is it?"), ("gpt", "Over there, I think."))


def record(k: int, **fields: Any) -> dict[str, Any]:
    return {"id": k, "conversations": TURNS, **fields}


def with_image(k: int) -> dict[str, Any]:
    turns = dialog(("human", "<image>\nWhat?"), ("gpt", 'A cat \u2603 \U0001f600 and "this" \\ that.'))
    return {
        "id": f"i{k}",
        "image": f"{k}.jpg",
        "conversations": turns,
        "score": 0.5,
        "more": {"a": [1, None]},
    }


def write(path: Path, content: Any, **options: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content, **options)
    path.write_text(text, encoding="utf-8")
    return path


# ---- faults ----


def test_find_fault_is_the_first_of_find_faults() -> None:
    bad = {"image": 3, "conversations": dialog(("human", "a"), ("human", 5), ("dog", "b"))}
    faults = list(find_faults(bad))
    assert [one.kind for one in faults] == ["not_text", "role_order", "role", "bad_image_name"]
    assert find_fault(bad) == faults[0].reason == "the value of turn 1 is a JSON number; expected text"
    assert find_fault(with_image(0)) == "" and list(find_faults(record(0))) == []


def test_speakers_after_an_unreadable_turn_are_not_blamed() -> None:
    assert [f.kind for f in find_faults({"conversations": [*TURNS, "x", TURNS[1]]})] == ["bad_turn"]


# ---- reading ----


@pytest.fixture(params=[7, 64, 1 << 22])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Read files in pieces of a few bytes as well, so that every boundary is met."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("options", [{}, {"indent": 4}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_a_list_is_read_as_json_load_reads_it(tmp_path: Path, chunk: int, options: dict[str, Any]) -> None:
    records = [with_image(0), record(1), with_image(2)]
    path = write(tmp_path / "d.json", records, **options)
    table = load_records(path)
    assert list(table) == records == table[:] and table[-1] == records[-1] and len(table) == 3
    assert table.words.tolist() == [10, 7, 10] and table.with_images.tolist() == [True, False, True]
    with pytest.raises(IndexError, match="record 3 was asked for; there are 3"):
        table[3]


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1} {"b": 2}]',
        '[{"a": 1},\n]',
        '[{"a": 1},\n {"b": tru}]',
        '[{"a": 1}] x',
        '[1, "x',
        '[{"a":\n\n 1, ]',
        "[",
        "",
    ],
)
def test_broken_json_is_named_as_json_load_names_it(tmp_path: Path, chunk: int, text: str) -> None:
    path = write(tmp_path / "d.json", text)
    with pytest.raises(json.JSONDecodeError) as plain:
        json.loads(text)
    with pytest.raises(DataError) as found:
        load_records(path)
    message = str(found.value).replace("Illegal trailing comma before end of array", "Expecting value")
    expected = plain.value.msg.replace("Illegal trailing comma before end of array", "Expecting value")
    assert expected in message and str(path) in message
    if "trailing" not in plain.value.msg:
        assert f"line {plain.value.lineno})" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds a JSON object; expected a list"),
        ("12", "holds a JSON number"),
        ("[]", "holds an empty list"),
        ('{"a": 1}\n{"a": 2}', r"let its name end in \.jsonl"),
        ("[3]", "record 0: it is a JSON number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, chunk: int, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_records(write(tmp_path / "d.json", text))


def test_bytes_that_are_no_text(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(json.dumps([record(0)]).encode() + b"\xff")
    with pytest.raises(DataError, match=f"not UTF-8 text .*at byte {path.stat().st_size - 1}"):
        load_records(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([record(0)]).encode())  # the mark of some editors
    assert load_records(path)[0] == record(0)


def test_faults_keep_their_message(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [record(0), {"id": "x", "conversations": dialog(("user", "a"))}])
    with pytest.raises(DataError) as found:
        load_records(path)
    assert str(found.value) == f"{path}: record 1 (id 'x'): turn 0 is from 'user'; expected 'human' or 'gpt'"
    table = load_records(path, keep_faulty=True)
    assert table.faulty() == [1] and table.fault(0) == "" and "from 'user'" in table.fault(1)
    with pytest.raises(DataError, match="cannot read the data file .*gone.json: No such file"):
        load_records(tmp_path / "gone.json")


def test_image_tokens_without_an_image_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = dialog(("human", "What is <image>?"), ("gpt", "A mark."))
    load_records(write(tmp_path / "d.json", [record(0), {"id": 9, "conversations": turns}]))
    (entry,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "1 record(s) without an image" in entry.message and "record 1 (id 9)" in entry.message


def test_lines_and_parquet(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    records = [with_image(0), record(1), with_image(2)]
    lines = "\n\n".join(json.dumps(one, ensure_ascii=False) for one in records)
    assert list(load_records(write(tmp_path / "d.jsonl", lines))) == records
    bad = write(tmp_path / "bad.jsonl", lines + "\n{")
    with pytest.raises(DataError, match="bad.jsonl: record 3: line 6 is not valid JSON"):
        load_records(bad)

    rows = [{"id": str(k), "conversations": TURNS, "image": None} for k in range(3)]
    rows[1] |= {"image": "a.png", "conversations": with_image(0)["conversations"]}
    parquet.write_table(Table.from_pylist(rows), tmp_path / "d.parquet")
    table = load_records(tmp_path / "d.parquet")
    assert table[0] == {"id": "0", "conversations": TURNS} and table[1] == rows[1]
    texts = [{"conversations": json.dumps(TURNS)}]
    parquet.write_table(Table.from_pylist(texts), tmp_path / "t.parquet")
    assert load_records(tmp_path / "t.parquet")[0] == {"conversations": TURNS}
    parquet.write_table(Table.from_pylist([record(0, image=b"12")]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="bytes of its images.*--streaming True"):
        load_records(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        load_records(write(tmp_path / "x.parquet", "hello"))


# ---- shards and mixtures ----


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Folder of three shards with 2, 3 and 4 records, ids 0 to 8."""
    folder, start = tmp_path / "shards", 0
    folder.mkdir()
    for number, count in enumerate((2, 3, 4)):
        write(folder / f"{number}.json", [record(k) for k in range(start, start + count)])
        start += count
    return folder


def ids(table: RecordTable) -> list[Any]:
    return [one["id"] for one in table]


def test_a_folder_or_a_pattern_is_one_sequence(shards: Path) -> None:
    for name in (shards, shards / "*.json", shards / "[0-2].json"):
        table = load_records(name)
        assert ids(table) == list(range(9))
        assert table.name(6) == f"{shards / '2.json'}: record 1 (id 6)"
        assert table.place(1) == (shards / "0.json", 1)
    with pytest.raises(DataError, match="no file matches"):
        load_records(shards / "*.jsonl")
    (shards / "0.jsonl").touch()
    with pytest.raises(DataError, match=r"holds .json, .jsonl files, which may be the same records twice"):
        load_records(shards)
    (shards / "empty").mkdir()
    with pytest.raises(DataError, match="has no .json"):
        load_records(shards / "empty")
    (shards / "a.tar").touch()
    with pytest.raises(DataError, match="--streaming True --max_steps"):
        load_records(shards / "a.tar")


def test_a_mixture_weighs_and_limits_its_parts(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        write(tmp_path / f"{name}.json", [record(k) for k in range(start, start + 40)])
    text = """
    datasets:
      - path: a.json
        weight: 2.5
        image_folder: images
      - {path: b.json, weight: 0.25}
      - path: c.json
        max_samples: 7
    """
    mixture = write(tmp_path / "mix.yaml", text)
    table = load_records(mixture, image_folder="/given")
    found = ids(table)
    assert len(table) == 100 + 10 + 7
    assert found[:80] == 2 * list(range(40)) and len(set(found[80:100])) == 20 and max(found[80:100]) < 40
    assert len(set(found[100:110])) == 10 and set(found[100:110]) <= set(range(100, 140))
    assert len(set(found[110:])) == 7 and min(found[110:]) >= 200
    assert ids(load_records(mixture)) == found  # the same in every process
    assert table.image_folder(0) == str(tmp_path / "images") and table.image_folder(101) == "/given"
    row = table[112]["id"] - 200
    assert table.name(112) == f"{tmp_path / 'c.json'}: record {row} (id {row + 200})"
    assert len(table.words) == len(table) == len(table.with_images)
    assert ids(load_records(mixture, every_record=True)) == [*range(40), *range(100, 140), *range(200, 240)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: a.json", "is not a mixture; expected a list"),
        ("- [a]", "entry 0 is .* expected a mapping with a 'path'"),
        ("- {path: a.json, wieght: 2}", "has the key 'wieght'; did you mean 'weight'"),
        ("- {path: a.json, weight: 0}", "'weight' is 0; expected a number above 0"),
        ("- {path: a.json, max_samples: 1.5}", "'max_samples' is 1.5"),
        ("- {path: a.json, image_folder: 3}", "'image_folder' is 3"),
        ("- {path: other.yaml}", "names another mixture"),
        ("- {path: a.json, weight: 0.1}", "leave no record"),
        ("- {path: a.json", "not valid YAML"),
    ],
)
def test_mixtures_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "a.json", [record(0)])
    with pytest.raises(DataError, match=message):
        load_records(write(tmp_path / "mix.yaml", text))


def test_entries_may_be_plain_names(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [record(0)])
    (source,) = find_sources(write(tmp_path / "m.yml", "- a.json\n"), "/images")
    assert source.weight == 1 and source.image_folder == "/images" and source.files == (tmp_path / "a.json",)


# ---- tables ----


def test_a_table_is_made_once_and_again_when_the_data_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write(tmp_path / "d.json", [record(0), with_image(1)]), tmp_path / "cache"
    first = load_records(path, cache_dir=cache)
    monkeypatch.setattr(arrow_cache, "_convert", lambda *_: pytest.fail("converted again"))
    again = load_records(path, cache_dir=cache)
    assert list(again) == list(first) == [record(0), with_image(1)]
    assert again.words.tolist() == first.words.tolist()
    monkeypatch.undo()
    write(path, [record(5)])
    assert ids(load_records(path, cache_dir=cache)) == [5]
    assert len(list(cache.glob("*.arrow"))) == 2 and not list(cache.glob("*.partial-*"))


def test_tables_lie_beside_the_data_or_else_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_cache, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(arrow_cache, "HOME_CACHE", tmp_path / "home")
    data = tmp_path / "data"
    data.mkdir()
    path = write(data / "d.json", [record(0)])
    load_records(path)
    (made,) = data.rglob("*.arrow")
    assert made.parent.name == ".llava_cache" and not (tmp_path / "home").exists()
    shutil.rmtree(made.parent)
    made.parent.write_text("a file in the way")  # as good as a folder without permission, also for root
    assert ids(load_records(path)) == [0]
    assert len(list((tmp_path / "home").glob("*.arrow"))) == 1
    with pytest.raises(DataError, match="cannot write to .*--data_cache_dir"):
        load_records(path, cache_dir=made.parent)


def test_small_files_that_are_large_together_lie_in_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture of a hundred of them would be read by every process at every start."""
    for number in range(4):
        write(tmp_path / f"{number}.json", [record(number)])
    mixture = write(tmp_path / "m.yaml", "".join(f"- {number}.json\n" for number in range(4)))
    size = (tmp_path / "0.json").stat().st_size
    monkeypatch.setattr(arrow_cache, "IN_MEMORY_BYTES", 4 * size)
    assert ids(load_records(mixture)) == [0, 1, 2, 3] and not list(tmp_path.rglob("*.arrow"))
    monkeypatch.setattr(arrow_cache, "IN_MEMORY_BYTES", 4 * size - 1)
    assert ids(load_records(mixture)) == [0, 1, 2, 3] and len(list(tmp_path.rglob("*.arrow"))) == 4
    assert ids(load_records(tmp_path / "0.json")) == [0]


def test_small_data_leaves_no_table_and_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "d.json", [record(k) for k in range(3)])
    monkeypatch.setattr(subprocess.Popen, "__init__", None)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", None)
    assert ids(load_records(path)) == [0, 1, 2]
    assert os.listdir(tmp_path) == ["d.json"]


def test_a_damaged_table_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, cache = write(tmp_path / "d.json", [record(0)]), tmp_path / "cache"
    load_records(path, cache_dir=cache)
    (table,) = cache.glob("*.arrow")
    table.write_bytes(table.read_bytes()[:100])
    assert ids(load_records(path, cache_dir=cache)) == [0]
    assert "is made again" in caplog.text


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    path = write(tmp_path / "d.json", '[{"id": 1}, oops')
    with pytest.raises(DataError, match="not valid JSON"):
        load_records(path, cache_dir=cache)
    write(path, [record(0)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(DataError, match="the disk is full.*--data_cache_dir"):
        load_records(path, cache_dir=cache)
    assert not list(cache.glob("*.arrow")) and not list(cache.glob("*.partial-*"))


def test_data_that_changes_under_the_conversion_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write(tmp_path / "d.json", [record(0)]), tmp_path / "cache"
    convert = arrow_cache._convert

    def slow(*args: Any) -> None:
        convert(*args)
        write(path, [record(0), record(1)])

    monkeypatch.setattr(arrow_cache, "_convert", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        load_records(path, cache_dir=cache)
    assert not list(cache.glob("*.arrow"))


def test_a_large_table_is_sent_to_workers_as_its_name(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "d.json", [with_image(k) for k in range(2000)]), tmp_path / "cache"
    table = load_records(path, cache_dir=cache)
    table.words  # noqa: B018  columns do not travel
    packed = pickle.dumps(table)
    assert len(packed) < 2000
    assert pickle.loads(packed)[1999] == with_image(1999)
    (file,) = cache.glob("*.arrow")
    file.unlink()
    assert table[5] == with_image(5)  # mapped already
    with pytest.raises(DataError, match="is gone"):
        pickle.loads(packed)


def test_batches_of_a_table_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_cache, "BATCH_CHARACTERS", 500)
    records = [with_image(k) if k % 3 else record(k) for k in range(50)]
    records[20]["conversations"] = []
    path = write(tmp_path / "d.json", records)
    for cache in (None, tmp_path / "cache"):
        table = load_records(path, cache_dir=cache, keep_faulty=True)
        assert list(table) == records and table.faulty() == [20] and "is empty" in table.fault(20)
        assert np.flatnonzero(~table.with_images).tolist() == [k for k in range(50) if not k % 3]


START = """
import json, sys, time
from llava.train.data.table import load_records
while time.time() < float(sys.argv[3]):
    pass
table = load_records(sys.argv[1], cache_dir=sys.argv[2])
print(len(table), int(table.words.sum()), table[len(table) - 1]["id"])
"""


@pytest.mark.slow
def test_eight_processes_that_start_together_convert_once(tmp_path: Path) -> None:
    count = 20_000
    path = write(tmp_path / "d.json", [record(k) for k in range(count)])
    cache = tmp_path / "cache"
    begin = str(time.time() + 4)
    log = "import logging; logging.basicConfig(level=logging.INFO)\n"
    command = [sys.executable, "-c", log + START, str(path), str(cache), begin]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert {out for out, _ in ended} == {f"{count} {7 * count} {count - 1}\n"}
    assert sum("records converted" in error for _, error in ended) == 1
    assert len(list(cache.glob("*.arrow"))) == 1 and not list(cache.glob("*.partial-*"))


@pytest.mark.slow
def test_a_conversion_that_is_killed_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [record(k) for k in range(100_000)])
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", START, str(path), str(cache), "0"])
    while not list(cache.glob("*.partial-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert list(cache.glob("*.partial-*")) and not list(cache.glob("*.arrow"))
    assert len(load_records(path, cache_dir=cache)) == 100_000
    assert not list(cache.glob("*.partial-*"))
