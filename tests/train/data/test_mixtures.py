"""LLaVA-NeXT's data files: json_path and sampling_strategy, names with braces; every reader agrees."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from doctoring import doctor
from recorded_training import dialog, flags, run_train

from llava.train.checkpointing.manifest import _data_files
from llava.train.data import arrow_cache
from llava.train.data.braces import expand_braces
from llava.train.data.image_folders import check_folders
from llava.train.data.sources import find_sources
from llava.train.data.streaming import find_shards
from llava.train.data.table import RecordTable, load_records
from llava.train.records import DataError

TURNS = dialog(("human", "Hi."), ("gpt", "That."))
V15 = "--version v1 --mm_projector_type mlp2x_gelu --mm_use_im_patch_token False --image_aspect_ratio pad"


def write(folder: Path, name: str, ids: range, **fields: Any) -> Path:
    records = [{"id": own, "conversations": TURNS, **fields} for own in ids]
    path = folder / name
    lines = "\n".join(map(json.dumps, records))
    path.write_text(lines if name.endswith(".jsonl") else json.dumps(records))
    return path


def mix(folder: Path, *entries: str, name: str = "mix.yaml") -> Path:
    """Write a data file as LLaVA-NeXT does; each entry is what stands between the braces."""
    path = folder / name
    path.write_text("datasets:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries))
    return path


def ids(table: RecordTable) -> list[Any]:
    return [one["id"] for one in table]


# ---- sampling_strategy ----


@pytest.mark.parametrize("file", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("total", [1, 7, 40, 101])
@pytest.mark.parametrize("kind", ["first", "end", "random"])
@pytest.mark.parametrize("number", ["1", "7", "1000", "1%", "10%", "33%", "100%", " 5 %"])
def test_what_a_strategy_selects(tmp_path: Path, file: str, total: int, kind: str, number: str) -> None:
    write(tmp_path, file, range(total))
    value = int(number.strip(" %"))
    count = min(total, math.ceil(value * total / 100) if "%" in number else value)
    table = load_records(mix(tmp_path, f"json_path: {file}, sampling_strategy: '{kind}:{number}'"))
    found = ids(table)
    assert len(found) == len(set(found)) == count and found == sorted(found)
    if kind != "random":
        assert found == list(range(total))[:count] if kind == "first" else list(range(total))[-count:]
    assert table.left_out == total - count and table.name(0) == f"record {found[0]} (id {found[0]})"


def test_all_is_the_default_and_every_quoting_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.json", range(5))
    text = (
        "datasets:\n- json_path: a.json\n  sampling_strategy: all\n- json_path: a.json\n"
        '- json_path: a.json\n  sampling_strategy: "first:50%"\n- json_path: a.json # of the web\n'
        "  sampling_strategy: end:1\n"
    )
    (tmp_path / "m.yaml").write_text(text)
    assert ids(load_records(tmp_path / "m.yaml")) == [*range(5), *range(5), 0, 1, 2, 4]


def test_a_random_part_is_that_of_max_samples_in_every_run(tmp_path: Path) -> None:
    write(tmp_path, "a.json", range(50))
    words = ("sampling_strategy: random:10", "sampling_strategy: random:20%", "max_samples: 10")
    found = [ids(load_records(mix(tmp_path, f"path: a.json, {word}"))) for word in words]
    assert found[0] == found[1] == found[2] != list(range(10))
    twice = mix(tmp_path, *2 * ["path: a.json, sampling_strategy: random:10"])
    both = ids(load_records(twice))
    assert both[:10] == found[0] != both[10:]


@pytest.mark.parametrize(
    "value",
    ["first:", "first", "first:-3", "first:0", "random:0%", "last:3", "first:ten", "random:150%", "end:1.5",
     "first:10%%", "10%", "all:3", "First:3", "", "first:3:4", "repeat:2", "first:²", "first:" + "9" * 5000],
)  # fmt: skip
def test_other_strategies_are_refused(tmp_path: Path, value: str) -> None:
    write(tmp_path, "a.json", range(5))
    path = mix(tmp_path, "path: a.json", f"path: a.json, sampling_strategy: '{value}'")
    with pytest.raises(DataError) as found:
        load_records(path)
    text = str(found.value)
    assert text.startswith(f"{path}: entry 1: 'sampling_strategy' is '{value[:60]}")
    assert (
        text.endswith("N is a number of records above 0 or a percentage from 1% to 100%") and len(text) < 400
    )


@pytest.mark.parametrize("value", ["", "3", "[first, 3]", "60:30", "true"])
def test_strategies_that_are_no_text_are_refused(tmp_path: Path, value: str) -> None:
    write(tmp_path, "a.json", range(5))
    (tmp_path / "m.yaml").write_text(f"- json_path: a.json\n  sampling_strategy: {value}\n")
    with pytest.raises(DataError, match="entry 0: 'sampling_strategy' is .*; expected all, first:N"):
        load_records(tmp_path / "m.yaml")


def test_limit_and_weight_come_after_the_strategy(tmp_path: Path) -> None:
    write(tmp_path, "a.json", range(100))
    path = mix(tmp_path, "path: a.json, sampling_strategy: end:20%, max_samples: 6, weight: 2.5")
    found = ids(load_records(path))
    assert len(found) == 15 and found[:6] == found[6:12] and set(found) <= set(range(80, 100))
    assert len(set(found)) == 6 and ids(load_records(path)) == found
    assert ids(load_records(path, every_record=True)) == list(range(80, 100))


def test_a_weight_that_leaves_nothing_of_an_entry_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a.json", range(9))
    path = mix(tmp_path, "path: a.json", "path: a.json, sampling_strategy: first:2, weight: 0.1")
    assert len(load_records(path)) == 9
    assert f"{tmp_path / 'a.json'}: its weight 0.1 leaves no record" in caplog.text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("json_path: a.json, path: a.json", "entry 0 has 'path' and 'json_path', which are the same"),
        ("json_path: 3", "entry 0 is .* expected a mapping with a 'path'"),
        ("json_path: ''", "entry 0 is .* expected a mapping with a 'path'"),
        ('json_path: "a\\0.json"', "entry 0: 'json_path' holds a NUL"),
        ('json_path: a.json, image_folder: "a\\0"', "entry 0: 'image_folder' holds a NUL"),
        ("json_path: a.json, sampling_stategy: all", "'sampling_stategy'; did you mean 'sampling_strategy'"),
        ("json_path: a.json, images_folder: x", "'images_folder'; did you mean 'image_folder'"),
        ("json_path: a.json, image_root: x", "'image_root'; did you mean 'image_folder'"),
        ("json_path: a.json, video_root: x", "'video_root'; did you mean 'video_folder'"),
        ("json_paths: a.json", "'json_paths'; did you mean 'json_path'"),
        ("json_path: a.json, weight: 1.0e+9", "'weight' is 1000000000.0; expected .* up to 10,000"),
        ("json_path: gone.json", "entry 0: there is no file .*gone.json; .* relative to its folder$"),
        ("json_path: pyproject.toml", r"relative to its folder \(pyproject.toml lies in the working folder"),
        ("json_path: 'x*.json'", "entry 0: no file matches"),
    ],
)
def test_words_of_entries(tmp_path: Path, entry: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.json", range(5))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(DataError, match=message):
        load_records(mix(tmp_path, entry))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.json", range(5))
    path = tmp_path / "m.yaml"
    path.write_text("datasets:\n- json_path: a.json\n- json_path: a.json\n  json_path: b.json\n")
    with pytest.raises(
        DataError, match="^[^ ]*m.yaml has the key 'json_path' twice in one mapping, in line 4"
    ):
        load_records(path)
    path.write_text("datasets: [a.json]\ndatasets: [b.json]\n")
    with pytest.raises(DataError, match="has the key 'datasets' twice in one mapping, in line 2"):
        load_records(path)
    path.write_text("- &one {json_path: a.json, sampling_strategy: first:2}\n- *one\n")
    assert ids(load_records(path)) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: &a [*a]\n", r"entry 0 is \[.*; expected a mapping with a 'path'"),
        ("&a {datasets: *a}\n", "is not a mixture; expected a list"),
        ("- &a {json_path: a.json, path: *a}\n", "'path' and 'json_path', which are the same"),
        ("[" * 5000, "is not valid YAML"),
        ("- {json_path: 2020-99-99}\n", "is not valid YAML: month must be in 1..12"),
        ("- {json_path: a.json, weight: !!int x}\n", "is not valid YAML"),
        ("- !!python/object:os.system {}\n", "is not valid YAML: could not determine a constructor"),
        ("- {? [a] : b}\n", "is not valid YAML: .*unhashable key"),
        ("- {3: a.json}\n", "entry 0 has the key 3; expected path"),
        ("- {null: a.json}\n", "entry 0 has the key None; expected path"),
        ("a.json\n", "is not a mixture"),
        ("--- [a.json]\n--- [a.json]\n", "is not valid YAML: expected a single document"),
    ],
)
def test_yaml_that_is_no_mixture(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "a.json", range(5))
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as found:
        load_records(tmp_path / "m.yaml")
    assert "\n" not in str(found.value) and len(str(found.value)) < 700


def test_a_record_that_two_entries_select_is_no_duplicate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a.json", range(5))
    path = mix(tmp_path, "path: a.json, sampling_strategy: first:3", "path: a.json")
    assert doctor("--data_path", path) == 0
    assert "duplicate" not in capsys.readouterr().out
    write(tmp_path, "a.json", range(1, 2))
    (tmp_path / "b.json").write_text(json.dumps(2 * json.loads((tmp_path / "a.json").read_text())))
    doctor("--data_path", mix(tmp_path, "path: b.json", "path: b.json"))
    assert "note duplicate_id: 2" in capsys.readouterr().out


def test_folders_of_an_entry_are_written_as_those_of_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one is for names that are absolute, and ~ is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    write(tmp_path / "home", "a.json", range(3))
    folders = "image_folder: '', video_folder: ~/videos"
    (source,) = find_sources(mix(tmp_path, f"json_path: ~/a.json, {folders}"), "/images", "/videos")
    assert source.files == (tmp_path / "home" / "a.json",)
    assert (source.image_folder, source.video_folder) == ("", str(tmp_path / "home" / "videos"))

    (tmp_path / "p.png").touch()
    turns = dialog(("human", "<image>\nWhat?"), ("gpt", "That."))
    record = {"image": str(tmp_path / "p.png"), "conversations": turns}
    (tmp_path / "b.json").write_text(json.dumps([record]))
    for folder, allowed in (("''", True), ("images", False)):
        records = load_records(mix(tmp_path, f"json_path: b.json, image_folder: {folder}"))
        with contextlib.nullcontext() if allowed else pytest.raises(DataError, match='--image_folder ""'):
            check_folders(records, None, allow_outside=False)


def test_all_missing_files_of_a_mixture_are_named(tmp_path: Path) -> None:
    write(tmp_path, "5.json", range(2))
    path = mix(tmp_path, *(f"json_path: {number}.json" for number in range(16)))
    with pytest.raises(DataError) as found:
        load_records(path)
    for number in (0, 4, 6, 10):
        assert f"entry {number}: there is no file {tmp_path}/{number}.json, " in str(found.value)
    assert "entry 5" not in str(found.value) and ", and 5 more; a path in a mixture" in str(found.value)


def test_a_strategy_counts_all_files_of_an_entry(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, f"{number}.json", range(10 * number, 10 * number + 10))
    for word in ("'*.json'", '"{0,1,2}.json"', "."):
        table = load_records(mix(tmp_path, f"json_path: {word}, sampling_strategy: end:40%"))
        assert ids(table) == list(range(18, 30))
        assert table.place(0) == (tmp_path / "1.json", 8)


def test_a_table_in_the_cache_serves_every_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.json", range(50))
    whole = [f"json_path: a.json, sampling_strategy: {word}" for word in ("all", "first:3", "random:30%")]
    plain = [ids(load_records(mix(tmp_path, entry))) for entry in whole]
    load_records(tmp_path / "a.json", cache_dir=tmp_path / "tables")
    monkeypatch.setattr(arrow_cache, "_convert", lambda *_: pytest.fail("converted again"))
    assert [ids(load_records(mix(tmp_path, one), cache_dir=tmp_path / "tables")) for one in whole] == plain


# ---- names with braces ----


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.json", ["a.json"]),
        ("{a,b}.json", ["a.json", "b.json"]),
        ("x{a,,b}", ["xa", "x", "xb"]),
        ("{a,{b,c}d}.{e,f}", ["a.e", "a.f", "bd.e", "bd.f", "cd.e", "cd.f"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{0..9000000..4500000}", ["0", "4500000", "9000000"]),
        ("{c..a}", ["c", "b", "a"]),
        ("{a}-{b,c}", ["{a}-b", "{a}-c"]),
        ("{}", ["{}"]),
    ],
)
def test_names_that_braces_stand_for(name: str, found: list[str]) -> None:
    assert expand_braces(name) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{a,b.json", r"\{a,b.json has a \{ that no \} closes"),
        ("a,b}.json", r"a \} that no \{ opens"),
        ("{1..1000000000}", "stands for more than 100,000 names"),
        ("{1..999}{1..999}", "stands for more than 100,000 names"),
        ("{" * 5000 + "}" * 5000, "has more than 50 braces"),
    ],
)
def test_braces_that_stand_for_nothing(tmp_path: Path, name: str, message: str) -> None:
    for read in (find_sources, find_shards):
        with pytest.raises(DataError, match=message):
            read(f"{tmp_path}/{name}")


def test_a_name_with_braces_as_data_path(tmp_path: Path) -> None:
    for number, name in enumerate(("a.json", "b.jsonl", "c.json")):
        write(tmp_path, name, range(10 * number, 10 * number + 2))
    assert ids(load_records(f"{tmp_path}/{{c,a}}.json")) == [20, 21, 0, 1]
    assert ids(load_records(f"{tmp_path}/{{a.json,b.jsonl}}")) == [0, 1, 10, 11]
    assert ids(load_records(f"{tmp_path}/{{a}}.json")) == [0, 1]
    assert ids(load_records(f"{tmp_path}/{{a,[bc]}}.json*")) == [0, 1, 10, 11, 20, 21]
    assert [one.name for one in _data_files(f"{tmp_path}/{{c,a}}.json")] == ["c.json", "a.json"]
    with pytest.raises(DataError) as found:
        load_records(f"{tmp_path}/{{a,x,c,y}}.json")
    assert "{a,x,c,y}.json stands for 4 file(s), of which 2 are missing: " in str(found.value)
    assert f"{tmp_path}/x.json, {tmp_path}/y.json; check" in str(found.value)
    write(tmp_path, "{a,x}.json", range(90, 91))
    assert ids(load_records(f"{tmp_path}/{{a,x}}.json")) == [90]  # a file of that very name
    (tmp_path / "{d}").mkdir()
    write(tmp_path / "{d}", "a.json", range(70, 71))
    assert ids(load_records(mix(tmp_path / "{d}", "path: '*.json'"))) == [70]
    mix(tmp_path, "path: a.json")
    with pytest.raises(DataError, match="stands for a mixture, .*mix.yaml, among others"):
        load_records(f"{tmp_path}/{{mix.yaml,a.json}}")
    for name in ("{mix,max}.yaml", "*.yaml"):
        with pytest.raises(DataError, match="names several mixtures; list their entries in one"):
            load_records(f"{tmp_path}/{name}")


def test_a_file_that_braces_name_twice_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "a.json", range(3))
    name = f"{tmp_path}/{{a,a}}.json"
    assert ids(load_records(name)) == [0, 1, 2, 0, 1, 2]
    assert f"{name} stands for {tmp_path}/a.json more than once; its records are used as often" in caplog.text
    doctor("--data_path", name)
    assert "note duplicate_id: 3" in capsys.readouterr().out


def test_a_name_with_braces_may_be_longer_than_a_file_name(tmp_path: Path) -> None:
    names = [f"{'x' * 40}{number}" for number in range(20)]
    for number, name in enumerate(names):
        write(tmp_path, f"{name}.json", range(number, number + 1))
    whole = f"{tmp_path}/{{{','.join(names)}}}.json"
    assert len(whole) > 800 and ids(load_records(whole)) == list(range(20))
    assert len(list(_data_files(whole))) == 20
    with pytest.raises(DataError, match=r"of which 1 are missing: .*/y\.json; check") as found:
        load_records(whole.replace("{", "{y,"))
    assert len(str(found.value)) < 800
    with pytest.raises(DataError, match="cannot read the data file .*: File name too long"):
        load_records(tmp_path / ("x" * 300 + ".json"))
    with pytest.raises(DataError, match="cannot read .*: File name too long"):
        load_records(tmp_path / ("x" * 300 + ".yaml"))


# ---- every reader agrees ----


@pytest.fixture
def mixture(training_data: Path, tmp_path: Path) -> Path:
    """Two files of 64 records: the last 20 of one, 10 % by chance of the other."""
    return mix(
        tmp_path,
        f"json_path: {training_data}/finetune.json, sampling_strategy: end:20",
        f"json_path: {training_data}/pretrain.json, sampling_strategy: random:10%",
    )


def test_a_fault_outside_of_the_selection_is_nobodys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"id": own, "conversations": TURNS if own < 8 else []} for own in range(10)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    good = mix(tmp_path, "json_path: a.json, sampling_strategy: first:80%")
    with caplog.at_level(logging.INFO):
        assert len(load_records(good)) == 8
    assert f"{tmp_path / 'a.json'}: first:80% selects 8 of 10 records" in caplog.text
    assert doctor("--data_path", good, "--fix", tmp_path / "f.json", "--json", tmp_path / "r.json") == 0
    out = capsys.readouterr().out
    assert "8 records checked, 0 of them with a fault" in out
    assert "  2 records were not checked; sampling_strategy leaves them out" in out
    assert json.loads((tmp_path / "f.json").read_text()) == records[:8]
    assert json.loads((tmp_path / "r.json").read_text())["left_out"] == 2

    bad = mix(tmp_path, "json_path: a.json, sampling_strategy: end:30%", name="bad.yaml")
    with pytest.raises(DataError, match="record 8 .id 8.: 'conversations' is empty"):
        load_records(bad)
    assert load_records(bad, keep_faulty=True).faulty() == [1, 2]
    assert doctor("--data_path", bad) == 1
    assert "record 8 (id 8): no_conversations" in capsys.readouterr().out


def test_doctor_and_training_read_the_same_records(
    mixture: Path, training_data: Path, checkpoints: Path, tmp_path: Path
) -> None:
    fixed = tmp_path / "fixed.json"
    assert doctor("--data_path", mixture, "--image_folder", training_data / "images", "--fix", fixed) == 0
    checked = [one["id"] for one in json.loads(fixed.read_text())]
    assert len(checked) == 27 and checked[:20] == [f"f{number}" for number in range(44, 64)]

    seen = []
    for seed in ("--seed 1", "--seed 2 --data_seed 5 --group_by_modality_length True"):
        more = f"{V15} --data_path {mixture} --save_strategy no --max_steps 2 {seed}"
        run = run_train(flags(checkpoints, training_data, tmp_path / seed[7], more))
        table = run.trainer.train_dataset.list_data_dict
        assert len(run.loss) == 2 and ids(table) == checked and len(run.trainer.train_dataset.lengths) == 27
        seen.append([table[index]["id"] for index in run.read])
    assert set(seen[0]) | set(seen[1]) <= set(checked) and seen[0] != seen[1]


def test_a_dry_run_counts_what_is_selected(
    mixture: Path, training_data: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"{V15} --data_path {mixture} --dry_run True"
    run_train(flags(checkpoints, training_data, tmp_path / "out", more))
    assert "27 samples, 20 with images, 7 of text alone" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["strategy", "file", "nothing"])
@pytest.mark.parametrize("ending", ["yaml", "YML"])
def test_a_changed_strategy_is_told_when_a_run_is_resumed(
    change: str, ending: str, training_data: Path, checkpoints: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "own.json").write_text((training_data / "finetune.json").read_text())
    path = mix(tmp_path, "json_path: own.json, sampling_strategy: first:20", name=f"m.{ending}")
    more = "--tune_mm_mlp_adapter True --save_strategy steps --save_steps 1 --max_steps 2"
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{V15} {more} --data_path {path}")
    first = run_train(argv, steps=1)
    if change == "strategy":
        path.write_text(path.read_text().replace("first:20", "first:16"))
    elif change == "file":
        other = json.loads((tmp_path / "own.json").read_text())
        (tmp_path / "own.json").write_text(json.dumps(other[:-1]))
    caplog.clear()
    again = run_train(argv)
    told = f"resuming with a change: the content of {path} is not what it was" in caplog.text
    assert told is (change != "nothing") and len(again.loss) == 1
    if change == "nothing":  # the second batch of the same order
        assert not set(first.read[:4]) & set(again.read[-4:])
