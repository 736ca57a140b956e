"""What --data_path may name: a file, several with braces, a folder or pattern, or a YAML mixture of them."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.train.data.braces import expand_braces
from llava.train.data.readers import ending
from llava.train.data.selection import Selection, parse_strategy
from llava.train.records import DataError
from llava.utils import import_optional, shortened, text_fault

FORMATS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tgz")
MIXTURES = (".yaml", ".yml")
PATH_KEYS = ("path", "json_path")  # the latter is LLaVA-NeXT's word
ENTRY_KEYS = (*PATH_KEYS, "image_folder", "video_folder", "sampling_strategy", "weight", "max_samples")
# What mixtures of other projects call the same things.
KEYS_ELSEWHERE = {
    **dict.fromkeys(("data_path", "annotation", "file", "jsonl_path"), "path"),
    **dict.fromkeys(("image_path", "images", "img_folder", "data_root", "root"), "image_folder"),
    **dict.fromkeys(("images_folder", "image_root", "image_dir"), "image_folder"),
    **dict.fromkeys(("video_path", "videos", "video_root", "videos_folder", "video_dir"), "video_folder"),
    **dict.fromkeys(("sampling", "strategy", "sample_strategy"), "sampling_strategy"),
    **dict.fromkeys(("repeat", "repeat_time", "ratio", "sampling_weight"), "weight"),
    **dict.fromkeys(("limit", "num_samples", "max_records", "sampling_number"), "max_samples"),
}
MOST_WEIGHT = 10_000
SHOWN = 10  # missing files in a message


@dataclass(frozen=True)
class Source:
    """Files of records that belong together, and how much of them is used.

    selection: which of the records there are at all. max_samples: how many of these are used at most, by
    chance but the same in every run. weight: how often each of those appears in an epoch; 0.5 takes every
    second one, again the same in every run.
    """

    name: str  # what the user wrote, for messages
    files: tuple[Path, ...]
    image_folder: str | None = None
    video_folder: str | None = None  # None: the image folder
    weight: float = 1.0
    max_samples: int | None = None
    selection: Selection | None = None  # all


def find_sources(
    data_path: str | Path, image_folder: str | None = None, video_folder: str | None = None
) -> list[Source]:
    """Find the files behind --data_path. Raises DataError when there are none, or a mixture is not one."""
    path = Path(data_path)
    if path.suffix.lower() in MIXTURES:
        if any(mark in path.name for mark in "{*?[") and not os.path.exists(path):
            raise DataError(f"{shortened(path)} names several mixtures; list their entries in one")
        return _read_mixture(path, image_folder, video_folder)
    return [Source(str(data_path), _find_files(str(data_path)), image_folder, video_folder)]


def _find_files(name: str) -> tuple[Path, ...]:
    """Return the files that a path, one with braces, a folder or a pattern means.

    Those of a folder or pattern come in the order of their names, those of braces as they stand there.
    """
    if not any(brace in name for brace in "{}") or os.path.exists(name) or any(glob.iglob(name)):
        return _find_part(name)  # also in a folder whose own name has braces
    parts = expand_braces(name, lone=True)
    missing = [one for one in parts if not any(mark in one for mark in "*?[") and not os.path.exists(one)]
    if missing:
        shown = ", ".join(shortened(one) or "''" for one in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{shortened(name)} stands for {len(parts)} file(s), of which {len(missing)} are missing: "
            f"{shown}{more}; check --data_path"
        )
    mixture = next((one for one in parts if Path(one).suffix.lower() in MIXTURES), None)
    if mixture is not None:
        raise DataError(f"{shortened(name)} stands for a mixture, {mixture}, among others; name it alone")
    return tuple(file for one in parts for file in _find_part(one))


def _find_part(name: str) -> tuple[Path, ...]:
    """Return the files that a path, a folder or a pattern means, in the order of their names."""
    path = Path(name)
    if os.path.isdir(path):
        found = [one for one in sorted(path.iterdir()) if one.is_file() and ending(one) in FORMATS]
        kinds = sorted({ending(one) for one in found})
        if len(kinds) > 1:
            raise DataError(
                f"the folder {name} holds {', '.join(kinds)} files, which may be the same records twice; "
                f"name one kind with a pattern such as {path / ('*' + kinds[0])}"
            )
    elif not os.path.exists(path) and any(mark in name for mark in "*?["):
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
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        tree = yaml.compose(text)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check --data_path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no such date
        raise DataError(f"{path} is not valid YAML: {shortened(' '.join(str(error).split()))}") from error
    _check_keys(path, tree)
    if isinstance(content, dict) and "datasets" in content:
        for key in content.keys() - {"datasets"}:
            raise DataError(f"{path} has the key {key!r} beside 'datasets'; {_nearest(key, ('datasets',))}")
        content = content["datasets"]
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} is not a mixture; expected a list of entries, each with a 'path'")
    given = {"image_folder": image_folder, "video_folder": video_folder}
    sources = [_read_entry(path, number, entry, given) for number, entry in enumerate(content)]
    _check_files(path, sources)
    return sources


def _check_files(mixture: Path, sources: Sequence[Source]) -> None:
    """Raise DataError naming the files of a mixture that are missing, as many as fit a message."""
    lacking = [
        (number, file)
        for number, source in enumerate(sources)
        for file in source.files
        if not os.path.exists(file)
    ]
    if not lacking:
        return
    told = ", ".join(
        f"entry {number}: there is no file {shortened(file)}" for number, file in lacking[:SHOWN]
    )
    more = f", and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    short = os.path.relpath(lacking[0][1], mixture.parent)
    here = f" ({short} lies in the working folder)" if os.path.exists(short) else ""
    raise DataError(f"{mixture}: {told}{more}; a path in a mixture is relative to its folder{here}")


def _check_keys(path: Path, tree: object) -> None:
    """Raise DataError when a mapping of a YAML tree has a key twice, of which YAML keeps the last."""
    nodes: dict[int, object] = {id(tree): tree}
    waiting = [tree]
    while waiting:
        for value in _values_of(path, waiting.pop()):
            if id(value) not in nodes:  # a node may hold itself
                nodes[id(value)] = value
                waiting.append(value)


def _values_of(path: Path, node: object) -> Iterator[object]:
    """Yield the nodes within a node of a YAML tree. Raises DataError for a key that stands there twice."""
    inner = getattr(node, "value", None)
    seen: set[str] = set()
    for part in inner if isinstance(inner, list) else ():
        key, value = part if isinstance(part, tuple) else (None, part)
        word = getattr(key, "value", None)
        if isinstance(word, str):
            if word in seen:
                line = key.start_mark.line + 1
                raise DataError(
                    f"{path} has the key {word!r} twice in one mapping, in line {line}; give it once"
                )
            seen.add(word)
        yield value


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
    folders = _folders_of(mixture, where, entry, given)
    strategy = entry.get("sampling_strategy", "all")
    return Source(
        *_files_of(mixture, where, entry),
        image_folder=folders["image_folder"],
        video_folder=folders["video_folder"],
        selection=parse_strategy(strategy, where),
        weight=_weight_of(where, entry),
        max_samples=_limit_of(where, entry),
    )


def _files_of(mixture: Path, where: str, entry: Mapping[str, object]) -> tuple[str, tuple[Path, ...]]:
    """Return the path of an entry, for messages, and its files."""
    words = [key for key in PATH_KEYS if key in entry]
    if len(words) > 1:
        raise DataError(f"{where} has {' and '.join(map(repr, words))}, which are the same; give one of them")
    path = entry[words[0]] if words else None
    if not isinstance(path, str) or not path.strip():
        raise DataError(f"{where} is {dict(entry)!r:.80}; expected a mapping with a 'path'")
    if fault := text_fault(path):
        raise DataError(f"{where}: {words[0]!r} {fault}")
    name = str(mixture.parent / os.path.expanduser(path))
    if Path(name).suffix.lower() in MIXTURES:
        raise DataError(f"{where} names another mixture, {name}; list its entries here")
    try:
        return name, _find_files(name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _folders_of(
    mixture: Path, where: str, entry: Mapping[str, object], given: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Return the folders of an entry's media; given: those where it names none."""
    folders = dict(given)
    for key in given:
        folder = entry.get(key)
        if folder is None:
            continue
        if not isinstance(folder, str):
            raise DataError(f"{where}: {key!r} is {folder!r}; expected a folder name")
        if fault := text_fault(folder):
            raise DataError(f"{where}: {key!r} {fault}")
        # "" is not the mixture's folder: as with the flags, the names are absolute
        folders[key] = folder and str(mixture.parent / os.path.expanduser(folder))
        if key == "image_folder":
            folders["video_folder"] = None  # where this entry's videos are, unless it names another folder
    return folders


def _weight_of(where: str, entry: Mapping[str, object]) -> float:
    weight = entry.get("weight", 1.0)
    if isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight <= MOST_WEIGHT:
        return float(weight)
    raise DataError(
        f"{where}: 'weight' is {weight!r:.80}; expected a number above 0 and up to {MOST_WEIGHT:,} "
        "(1 is each record once)"
    )


def _limit_of(where: str, entry: Mapping[str, object]) -> int | None:
    limit = entry.get("max_samples")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise DataError(f"{where}: 'max_samples' is {limit!r}; expected a whole number above 0")
    return limit
