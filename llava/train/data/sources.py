"""What --data_path may name: a file, a folder or pattern of shards, or a YAML mixture of them."""

from __future__ import annotations

import difflib
import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.train.data.readers import ending
from llava.train.records import DataError
from llava.utils import import_optional

FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tgz")
MIXTURES = (".yaml", ".yml")
ENTRY_KEYS = ("path", "image_folder", "video_folder", "weight", "max_samples")
# What mixtures of other projects call the same things.
KEYS_ELSEWHERE = {
    **dict.fromkeys(("json_path", "data_path", "annotation", "file"), "path"),
    **dict.fromkeys(("image_path", "images", "img_folder", "data_root", "root"), "image_folder"),
    **dict.fromkeys(("video_path", "videos", "video_root"), "video_folder"),
    **dict.fromkeys(("repeat", "repeat_time", "ratio", "sampling_weight"), "weight"),
    **dict.fromkeys(("limit", "num_samples", "max_records"), "max_samples"),
}


@dataclass(frozen=True)
class Source:
    """Files of records that belong together, and how much of them is used.

    weight: how often each record appears in an epoch; 0.5 takes every second one, by chance but the same in
    every run. max_samples: how many records are used at most, before the weight.
    """

    name: str  # what the user wrote, for messages
    files: tuple[Path, ...]
    image_folder: str | None = None
    video_folder: str | None = None  # None: the image folder
    weight: float = 1.0
    max_samples: int | None = None


def find_sources(
    data_path: str | Path, image_folder: str | None = None, video_folder: str | None = None
) -> list[Source]:
    """Find the files behind --data_path. Raises DataError when there are none, or a mixture is not one."""
    path = Path(data_path)
    if path.suffix.lower() in MIXTURES:
        return _read_mixture(path, image_folder, video_folder)
    return [Source(str(data_path), _find_files(str(data_path)), image_folder, video_folder)]


def _find_files(name: str) -> tuple[Path, ...]:
    """Return the files that a path, a folder or a pattern means, in the order of their names."""
    path = Path(name)
    if path.is_dir():
        found = [one for one in sorted(path.iterdir()) if one.is_file() and ending(one) in FORMATS]
        kinds = sorted({ending(one) for one in found})
        if len(kinds) > 1:
            raise DataError(
                f"the folder {name} holds {', '.join(kinds)} files, which may be the same records twice; "
                f"name one kind with a pattern such as {path / ('*' + kinds[0])}"
            )
    elif not path.exists() and any(mark in name for mark in "*?["):
        found = [Path(one) for one in sorted(glob.glob(name, recursive=True))]
        if not found:
            raise DataError(f"no file matches {name}; check --data_path")
    else:
        found = [path]
    if not found and any(path.glob("*.tar")):
        raise DataError(
            f"the folder {name} holds archives of samples; they are read with --streaming True --max_steps N"
        )
    if not found:
        raise DataError(f"the folder {name} has no {', '.join(FORMATS)} files; check --data_path")
    for file in found:
        if ending(file) not in FORMATS and file.suffix.lower() in PACKED:
            raise DataError(
                f"{file} is packed in a way that is not read here; expected {', '.join(FORMATS)}; unpack it"
            )
        if file.suffix.lower() == ".tar":
            raise DataError(
                f"{file} is an archive of samples; it is read with --streaming True --max_steps N"
            )
    return tuple(found)


def _read_mixture(path: Path, image_folder: str | None, video_folder: str | None) -> list[Source]:
    yaml = import_optional("yaml", needed_for=f"the mixture {path}", install="pyyaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check --data_path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(content, dict) and "datasets" in content:
        for key in content.keys() - {"datasets"}:
            raise DataError(f"{path} has the key {key!r} beside 'datasets'; {_nearest(key, ('datasets',))}")
        content = content["datasets"]
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} is not a mixture; expected a list of entries, each with a 'path'")
    given = {"image_folder": image_folder, "video_folder": video_folder}
    return [_read_entry(path, number, entry, given) for number, entry in enumerate(content)]


def _nearest(key: object, known: Sequence[str]) -> str:
    """Name the known key that is nearest to an unknown one."""
    word = str(key).lower()
    near = {**{one: one for one in known}, **KEYS_ELSEWHERE}
    close = difflib.get_close_matches(word, near, n=1)
    meant = near[close[0]] if close else ""
    return f"did you mean {meant!r}?" if meant in known else f"expected {', '.join(known)}"


def _read_entry(mixture: Path, number: int, entry: object, given: Mapping[str, str | None]) -> Source:
    """Check one entry; its paths are relative to the mixture's folder. given: folders where it names none."""
    where = f"{mixture}: entry {number}"
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is {entry!r:.80}; expected a mapping with a 'path'")
    for key in entry:
        if key not in ENTRY_KEYS:
            raise DataError(f"{where} has the key {key!r}; {_nearest(key, ENTRY_KEYS)}")
    if not isinstance(entry.get("path"), str):
        raise DataError(f"{where} is {dict(entry)!r:.80}; expected a mapping with a 'path'")
    weight, limit = entry.get("weight", 1.0), entry.get("max_samples")
    numeric = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not numeric or not math.isfinite(weight) or weight <= 0:
        raise DataError(f"{where}: 'weight' is {weight!r}; expected a number above 0 (1 is each record once)")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise DataError(f"{where}: 'max_samples' is {limit!r}; expected a whole number above 0")
    folders = dict(given)
    for key in given:
        folder = entry.get(key)
        if folder is None:
            continue
        if not isinstance(folder, str):
            raise DataError(f"{where}: {key!r} is {folder!r}; expected a folder name")
        folders[key] = str(mixture.parent / folder)
        if key == "image_folder":
            folders["video_folder"] = None  # where this entry's videos are, unless it names another folder
    name = str(mixture.parent / entry["path"])
    if Path(name).suffix.lower() in MIXTURES:
        raise DataError(f"{where} names another mixture, {name}; list its entries here")
    files = _find_files(name)
    return Source(name, files, folders["image_folder"], folders["video_folder"], float(weight), limit)
