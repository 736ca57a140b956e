"""Files of a checkpoint: their names, how they are read safely and written whole, and how keys are renamed.

Nothing else in the library unpickles; `.bin` files are read with `weights_only=True` only.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava._compat import cached_hub_file
from llava.atomic import atomic_file
from llava.model.checkpoints.errors import CheckpointError, first_line
from llava.model.checkpoints.sanity import check_config
from llava.utils import shortened

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# in the order in which transformers prefers them
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

# what the names of the projector's weights contain; image_newline is trained and kept with it
PROJECTOR_NAMES = ("mm_projector.", "image_newline")

# names of dtypes in the header of a safetensors file (https://huggingface.co/docs/safetensors, 'Format')
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# tensors of old checkpoints that today's models recompute
RECOMPUTED = (".inv_freq", ".position_ids")


# ---------------------------------------------------------------------------------------------- finding files


def find_file(path: str | Path, name: str) -> Path | None:
    """Return the local path of file `name` of a checkpoint folder or hub repository, None if it has no such
    file.

    Raises CheckpointError when there is neither such a folder nor such a repository.
    """
    if not str(path):  # pathlib takes it for the current folder
        raise CheckpointError("The name of a checkpoint is empty; give a folder or a hub name 'owner/name'.")
    folder = Path(path)
    if os.path.isdir(path):  # of a path that is too long, pathlib raises
        return folder / name if (folder / name).is_file() else None
    text = shortened(path)
    if os.path.exists(path):
        raise CheckpointError(f"{text} is a file; expected the folder of a checkpoint.")
    if folder.is_absolute() or text.startswith((".", "~")) or str(path).count("/") != 1 or "\\" in text:
        raise CheckpointError(
            f"There is no folder {text}; give the folder of a checkpoint or a hub name 'owner/name'."
        )
    return _hub_file(text, name)


def _hub_file(repository: str, name: str) -> Path | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        found = cached_hub_file(repository, name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"There is no folder {repository!r} here, and the hub did not give {name} of a repository of "
            f"that name "
            f"({first_line(error)}). Check the name, or download it and give the folder."
        ) from error
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
    if not found and not cache.is_dir():  # offline, transformers answers as if the repository lacked the file
        raise CheckpointError(
            f"There is no folder {repository!r} here, it is not in the cache of the hub ({cache.parent}), "
            f"and the hub was not reached to get its {name}. Check name and connection (HF_HUB_OFFLINE)."
        )
    return Path(found) if found else None


def has_file(path: str | Path, name: str) -> bool:
    """Tell whether a checkpoint folder or hub repository has file `name`."""
    return find_file(path, name) is not None


def name_of(path: str | Path) -> str:
    """Return what tells models apart wherever they lie: the name of a folder or hub repository."""
    place = Path(os.path.realpath(path) if os.path.isdir(path) else path)
    if place.parent.name == "snapshots":  # of the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return place.parent.parent.name.rpartition("--")[2]
    return place.name


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets in brackets without end
        raise CheckpointError(
            f"{file} cannot be read as JSON ({first_line(error)}); copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a JSON {type(content).__name__}; expected an object.")
    return content


def read_config(path: str | Path) -> dict[str, Any]:
    """Read `config.json` of a checkpoint folder or hub repository."""
    file = find_file(path, CONFIG_FILE)
    if file is None:
        raise CheckpointError(f"{path} has no {CONFIG_FILE}, so it is not a model folder.")
    config = read_json(file)
    check_config(config, str(path))
    return config


def weight_files(path: str | Path) -> list[Path]:
    """List the files that hold the model's weights (one, or all shards of an index); empty if there are none.

    Raises CheckpointError that names a shard which the index lists and the folder lacks, or a truncated file.
    """
    for single, index in zip(WEIGHT_FILES, WEIGHT_INDEXES, strict=True):
        file = find_file(path, single)
        if file is not None:
            return [_whole(file)]
        index_file = find_file(path, index)
        if index_file is not None:
            names = sorted(set(_weight_map(index_file).values()))
            found = {name: find_file(path, name) for name in names}
            missing = [name for name, place in found.items() if place is None]
            if missing:
                raise CheckpointError(
                    f"{path} lacks {len(missing)} of the {len(names)} weight files that {index} lists: "
                    f"{', '.join(missing[:4])}. Copy or download the folder again."
                )
            return [_whole(place) for place in found.values() if place is not None]
    return []


def _weight_map(index_file: Path) -> dict[str, str]:
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index_file} has no 'weight_map'; expected the index of a sharded checkpoint."
        )
    for name in weight_map.values():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise CheckpointError(
                f"{index_file} names {str(name)[:80]!r} as a file of weights; expected the name of a file in "
                "the same folder. Copy or download the index again."
            )
    return weight_map


def refuse_pointer(file: Path) -> None:
    """Raise CheckpointError if git-lfs left a pointer in the place of a large file."""
    with file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f"{file} is a git-lfs pointer, not the file itself; run 'git lfs pull' in {file.parent}."
            )


def _whole(file: Path) -> Path:
    """Return `file` if its size is what its own header promises (safetensors), or it is not empty."""
    size = file.stat().st_size
    if size == 0:
        raise CheckpointError(f"{file} is empty; copy or download it again.")
    refuse_pointer(file)
    if file.suffix == ".safetensors":
        promised = _safetensors_size(file, size)
        if size != promised:
            raise CheckpointError(
                f"{file} is damaged: {size} bytes, its header promises {promised}; copy it again."
            )
    return file


def _safetensors_size(file: Path, size: int) -> int:
    """Bytes that the header promises (https://huggingface.co/docs/safetensors, 'Format')."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = stream.read(length) if length < size else b""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: it has no safetensors header; copy it again.") from error
    return 8 + length + max(ends, default=0)


# ---------------------------------------------------------------------------------------------------- reading


def read_tensors(
    file: str | Path, *, only: Sequence[str] = (), shapes_only: bool = False
) -> dict[str, torch.Tensor]:
    """Read the tensors of one `.bin` or `.safetensors` file to the CPU.

    only: read just the tensors whose name contains one of these. shapes_only: read no values; the tensors are
    on the device "meta". Raises CheckpointError when the file is damaged, or is a pickle that holds anything
    but tensors and plain containers: such a file could run code, and is refused without running it.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"There is no file {file}.")
    _whole(file)
    if file.suffix == ".safetensors":
        if shapes_only:
            return {n: value for n, value in _safetensors_shapes(file).items() if _is_wanted(n, only)}
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys() if _is_wanted(name, only)}  # noqa: SIM118
    content = _unpickle(file, mmap=bool(only) or shapes_only, device="meta" if shapes_only else "cpu")
    if not isinstance(content, Mapping) or not all(torch.is_tensor(value) for value in content.values()):
        raise CheckpointError(f"{file} holds {type(content).__name__}; expected a dict of tensors.")
    # a copy of what is picked from a mapped file, so that the file may be replaced afterwards
    return {n: value.clone() if only else value for n, value in content.items() if _is_wanted(n, only)}


def _is_wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(part in name for part in only)


def _safetensors_shapes(file: Path) -> dict[str, torch.Tensor]:
    shapes = {}
    with safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            part = stored.get_slice(name)
            dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(
                    f"{file}: {name} is of type {part.get_dtype()}, which is not known here."
                )
            shapes[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return shapes


def _unpickle(file: Path, *, mmap: bool, device: str = "cpu") -> Any:
    try:
        return torch.load(file, map_location=device, weights_only=True, mmap=mmap)
    except RuntimeError as error:
        if mmap:  # files of the format before torch 1.6 cannot be mapped
            return _unpickle(file, mmap=False, device=device)
        raise CheckpointError(f"{file} is damaged or no torch file ({first_line(error)}).") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is damaged or holds objects other than tensors; it was not loaded, because such a file "
            "can run code. Get it from a source you trust, as safetensors if there is one."
        ) from error
    except Exception as error:  # damaged pickles end in exceptions of many kinds
        raise CheckpointError(f"{file} is damaged or no torch file ({first_line(error)}).") from error


def load_weights(path: str | Path, *, shapes_only: bool = False) -> dict[str, torch.Tensor]:
    """Read all weights of a folder (whatever its layout), or of a single file; see `read_tensors`."""
    if Path(path).is_file():
        return read_tensors(path, shapes_only=shapes_only)
    files = weight_files(path)
    if not files:
        raise CheckpointError(
            f"{path} holds no weights; looked for {', '.join(WEIGHT_FILES + WEIGHT_INDEXES)}."
        )
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights.update(read_tensors(file, shapes_only=shapes_only))
    return weights


# ---------------------------------------------------------------------------------------------------- writing


def save_tensors(tensors: Mapping[str, torch.Tensor], file: str | Path) -> None:
    """Write a dict of tensors as `.bin` or `.safetensors`, whole or not at all."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as scratch:
        if file.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(
                {name: value.contiguous() for name, value in tensors.items()}, scratch, {"format": "pt"}
            )
        else:
            torch.save(dict(tensors), scratch)


# ------------------------------------------------------------------------------------------- names of weights


def is_tower_key(name: str) -> bool:
    """Tell whether a weight belongs to the vision tower."""
    return "vision_tower." in name


def is_recomputed(name: str) -> bool:
    """Tell whether today's models compute this tensor instead of loading it."""
    return name.endswith(RECOMPUTED)


def part_of(weights: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """Pick the weights of the submodule named `part`, with names relative to it.

    `{"model.mm_projector.0.weight": w}` gives `{"0.weight": w}` for the part "mm_projector".
    """
    marker = f"{part}."
    return {name.split(marker, 1)[1]: value for name, value in weights.items() if marker in name}


def strip_adapter_prefix(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys of `non_lora_trainables.bin` to those of the model.

    They are written from inside the PEFT wrapper, with `base_model.model.` in front, by some versions only
    with `base_model.`; the model's own names begin with `model.`, `transformer.` or `lm_head.`.
    """
    renamed = {name.removeprefix("base_model."): value for name, value in weights.items()}
    wrapped = ("model.model.", "model.transformer.", "model.lm_head.")
    if any(name.startswith(wrapped) for name in renamed):
        renamed = {name.removeprefix("model."): value for name, value in renamed.items()}
    return renamed


def named_part(
    named_tensors: Iterable[tuple[str, torch.Tensor]], keys: Iterable[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pick the tensors whose name contains one of `keys`, as the reference picks what stage 1 saves."""
    wanted = tuple(keys)
    return ((name, value) for name, value in named_tensors if any(key in name for key in wanted))
