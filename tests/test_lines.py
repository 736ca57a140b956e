"""Files that grow by lines: whole lines only, several writers, another file put in their place."""

import json
import multiprocessing

import pytest

from llava.lines import LineFile
from llava.utils import UserError


def test_lines_are_appended_and_a_cut_off_one_is_removed(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    with LineFile(path) as file:
        file.append(['{"a": 1}'])
        path.write_bytes(path.read_bytes() + b'{"a": "half')
        file.append(['{"a": 2}', '{"a": "\u00fc"}'])
    assert path.read_text(encoding="utf-8").splitlines() == ['{"a": 1}', '{"a": 2}', '{"a": "\u00fc"}']


def test_a_very_long_half_line_is_found(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 300_000)
    LineFile(path).mend()
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(b'{"b": "' + b"x" * 300_000)
    LineFile(path).mend()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (b'{"a": 1}{"b": 2}', b'{"a": 1}{"b": 2}\n'),
        (b'{"a": 1} {"b": "\xc3\xbc"}{"c": "\xc3', b'{"a": 1} {"b": "\xc3\xbc"}\n'),
        (b'{"a": 1}{"b', b'{"a": 1}\n'),
        (b'{"a": 1} [2]', b'{"a": 1}\n'),
        (b"[2]", b""),
        (b'{"a": ' + b"[" * 100_000, b""),
    ],
)
def test_whole_objects_of_a_line_that_was_cut_off_stay(tmp_path, end, kept):
    """Some programs write objects without a line break between them: what is whole is not thrown away."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"first": 0}\n' + end)
    LineFile(path).mend()
    assert path.read_bytes() == b'{"first": 0}\n' + kept


def test_an_append_goes_to_the_file_that_has_the_name_now(tmp_path):
    path = tmp_path / "a.jsonl"
    one, two = LineFile(path), LineFile(path)
    one.append(["1"])
    two.append(["2"])
    two.rewrite(lambda: sorted(path.read_text().splitlines(), reverse=True))
    one.append(["3"])
    assert path.read_text() == "2\n1\n3\n"


def _append(path, number):
    with LineFile(path) as file:
        for count in range(20):
            file.append([json.dumps({"writer": number, "count": count, "text": "x" * 3000})])


def test_several_processes_lose_and_mix_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(path, number)) for number in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
    found = [json.loads(one) for one in path.read_text().splitlines()]
    assert sorted((one["writer"], one["count"]) for one in found) == [
        (writer, count) for writer in range(3) for count in range(20)
    ]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        LineFile(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        LineFile(tmp_path / "file" / "a.jsonl").append(["1"])
