"""Tables of records: a changed file is noticed, also of the same size and time; damage is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded_training import dialog

from llava.train.data import arrow_cache
from llava.train.data.table import load_records
from llava.train.records import DataError

TEXT = dialog(("human", "Hi."), ("gpt", "That."))


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "d.json"
    path.write_text(json.dumps(records))
    return path


Change = Callable[[Path], None]


def in_place(path: Path) -> None:
    path.write_text(path.read_text().replace("old", "new"))


def by_renaming(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(path.read_text().replace("old", "new"))
    other.replace(path)


@pytest.mark.parametrize("change", [in_place, by_renaming])
@pytest.mark.parametrize("place", [1, 150, 420])
def test_a_file_of_the_same_size_and_time_is_noticed(tmp_path: Path, change: Change, place: int) -> None:
    """Also where the change lies between the parts that are always looked at."""
    filler = "x" * 1000
    records = [
        {"id": "old" if k == place else "same", "filler": filler, "conversations": TEXT} for k in range(500)
    ]
    path, cache = write(tmp_path, records), tmp_path / "tables"
    assert load_records(path, cache_dir=cache)[place]["id"] == "old"
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load_records(path, cache_dir=cache)[place]["id"] == "new"


def test_a_file_that_was_only_touched_keeps_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write(tmp_path, [{"conversations": TEXT}]), tmp_path / "tables"
    load_records(path, cache_dir=cache)
    path.chmod(0o600)
    path.rename(tmp_path / "x")
    (tmp_path / "x").rename(path)
    monkeypatch.setattr(arrow_cache, "_convert", lambda *_: pytest.fail("converted again"))
    load_records(path, cache_dir=cache)


def damaged(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    flips = {
        f"flip at {place}": data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        for place in range(0, len(data), max(1, len(data) // 60))
    }
    return {
        "empty": b"",
        "rubbish": b"rubbish" * 100,
        "cut": data[:middle],
        "head lost": data[middle:],
        "zeros": bytes(len(data)),
        "hole": data[:1000] + bytes(len(data) - 2000) + data[-1000:],
        **flips,
    }


def test_a_damaged_table_is_made_again_or_named(tmp_path: Path) -> None:
    records = [{"id": k, "conversations": TEXT} for k in range(40)]
    path, cache = write(tmp_path, records), tmp_path / "tables"
    load_records(path, cache_dir=cache)
    (file,) = cache.glob("*.arrow")
    whole = file.read_bytes()
    for what, data in damaged(whole).items():
        file.unlink()
        file.write_bytes(data)
        try:
            table = load_records(path, cache_dir=cache)
            found = list(table)
        except DataError as error:
            assert str(file) in str(error) and "damaged; delete it" in str(error), what
        else:
            assert found == records, what


@pytest.mark.parametrize("column", ["record", "words", "images", "stray", "fault", "id", "leaving"])
def test_a_changed_value_that_can_still_be_read_is_named(tmp_path: Path, column: str) -> None:
    import pyarrow

    path, cache = write(tmp_path, [{"id": k, "conversations": TEXT} for k in range(3)]), tmp_path / "tables"
    load_records(path, cache_dir=cache)
    (file,) = cache.glob("*.arrow")
    whole = pyarrow.ipc.open_file(file.read_bytes()).read_all()
    values = whole.column(column).to_pylist()
    other = {
        "record": json.dumps({"id": 1, "conversations": TEXT + TEXT}),
        "stray": True,
        "words": 9,
        "images": 1,
    }
    values[1] = other.get(column, "another text")
    number = whole.schema.get_field_index(column)
    field = whole.schema.field(number)
    changed = whole.set_column(number, field, pyarrow.array(values, field.type))
    file.unlink()
    with pyarrow.ipc.new_file(str(file), changed.schema) as writer:
        writer.write_table(changed)
    with pytest.raises(DataError, match="is damaged; delete it, and start again"):
        list(load_records(path, cache_dir=cache, keep_faulty=True))


def test_a_table_of_other_columns_is_made_again(tmp_path: Path) -> None:
    import pyarrow

    path, cache = write(tmp_path, [{"conversations": TEXT}]), tmp_path / "tables"
    load_records(path, cache_dir=cache)
    (file,) = cache.glob("*.arrow")
    other = pyarrow.table({"record": ["{}"]})
    file.unlink()
    with pyarrow.ipc.new_file(str(file), other.schema) as writer:
        writer.write_table(other)
    assert load_records(path, cache_dir=cache)[0] == {"conversations": TEXT}


def test_columns_are_read_without_pandas(tmp_path: Path) -> None:
    import pyarrow

    for kind, values in (("int32", [3, -4, 5, 6, 7]), ("bool", [True, False, False, True, True] * 3)):
        whole = pyarrow.array(values, kind)
        column = pyarrow.chunked_array([whole[1:3], whole[:0], whole[2:]])
        assert arrow_cache.numbers_of(column).tolist() == values[1:3] + values[2:]
    path = write(tmp_path, [{"conversations": TEXT}])
    load_records(path, cache_dir=tmp_path / "tables")
    code = (
        "import sys; from llava.train.data.table import load_records\n"
        f"table = load_records({str(path)!r}, cache_dir={str(tmp_path / 'tables')!r})\n"
        "assert table.words.tolist() and not table.with_images.any() and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
