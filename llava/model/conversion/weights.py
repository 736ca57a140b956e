"""Weights on their way from one folder to another: read one by one, written in shards, nothing held twice."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llava.atomic import atomic_folder, move, write_text
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.checkpoints.writing import explained_write
from llava.model.conversion.keys import HEAD, TOWER_PREFIX, VISION_LEVEL, VOCABULARY_WEIGHTS
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.registry import describe_tower

Named = Iterator[tuple[str, torch.Tensor]]

PADDING_SEED = 0
_PADDING_VARIANCE = 1e-5  # of new rows, in units of the covariance of the old ones, as llava-hf has it


# ------------------------------------------------------------------------------------------------- reading


def stored(path: str | Path, wanted: Callable[[str], bool] = bool) -> Named:
    """Yield the weights of a folder as they are stored; safetensors one by one, `.bin` by file.

    wanted: tells by its name whether a weight is read; all are by default.
    """
    found = files.weight_files(path)
    if not found:
        raise CheckpointError(f"{path} holds no weights; looked for {', '.join(files.WEIGHT_FILES)}.")
    for file in found:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                for name in filter(wanted, content.keys()):
                    yield name, content.get_tensor(name)
        else:
            content = files.read_tensors(file)
            for name in filter(wanted, list(content)):
                yield name, content.pop(name)


def tower_weights(folder: str | Path) -> Named:
    """Yield the weights of a tower's own folder under the names of a LLaVA checkpoint.

    In a folder saved by transformers 4, or with a text half beside it, `vision_model.` stands in front of
    each name, in one saved by transformers 5 it does not. Raises CheckpointError when one is missing.
    """
    fields = SimpleNamespace(mm_vision_tower=str(folder))
    tower = describe_tower(MultimodalConfig.of(fields))
    with torch.device("meta"):
        missing = set(tower.model_class(tower.config).state_dict())
    total = len(missing)
    for name, value in stored(folder, lambda one: one.removeprefix(VISION_LEVEL) in missing):
        own = name.removeprefix(VISION_LEVEL)
        missing.discard(own)
        yield TOWER_PREFIX + own, value
    if missing:
        few = ", ".join(sorted(missing)[:3])
        what = "holds no weights of a vision tower" if len(missing) == total else "lacks weights of its tower"
        raise CheckpointError(f"{folder} {what}: {few}, with or without {VISION_LEVEL} in front.")


def first_dtype(path: str | Path) -> torch.dtype:
    """Return the dtype in which a folder stores its language model."""
    for file in files.weight_files(path):
        for name, value in files.read_tensors(file, only=("layers.0.", "embed_tokens.")).items():
            if value.is_floating_point() and not files.is_tower_key(name) and not files.is_recomputed(name):
                return value.dtype
    raise CheckpointError(f"{path} holds no weights of a language model (layers.0.*).")


# ---------------------------------------------------------------------------------------------- vocabulary


def with_rows(weights: Named, *, keep: int, total: int) -> Named:
    """Cut embeddings and head to `keep` rows and let them grow to `total`; other weights pass.

    A matrix with fewer rows than `keep` is filled up like the padding: its loader would draw them at random.
    """
    for name, value in weights:
        if name not in VOCABULARY_WEIGHTS or keep == total == value.shape[0]:
            yield name, value
        elif total <= min(keep, value.shape[0]):
            yield name, value[:total].clone()
        else:
            kept = value[:keep]
            yield name, torch.cat([kept, _new_rows(kept, total - kept.shape[0])])


def _new_rows(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """Draw rows around the mean of a matrix (rows, C), so close that the head never prefers one of them.

    From N(mean, 1e-5 * covariance), the distribution that llava-hf draws from, with a fixed seed; a sum of
    rows with random factors has that covariance.
    """
    rows = matrix.float()
    mean = rows.mean(dim=0)
    generator = torch.Generator().manual_seed(PADDING_SEED)
    factors = (
        torch.randn(count, rows.shape[0], generator=generator) * (_PADDING_VARIANCE / rows.shape[0]) ** 0.5
    )
    drawn = mean + factors @ rows - factors.sum(dim=1, keepdim=True) * mean
    return drawn.to(matrix.dtype)


# ------------------------------------------------------------------------------------------------- writing


class ShardWriter:
    """Writes weights as safetensors shards with an index, holding at most one shard."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.total_bytes = 0
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, value: torch.Tensor) -> None:
        """Take a weight; raises CheckpointError when one of that name was there."""
        if name in self.shapes:
            raise CheckpointError(f"Two weights of the checkpoint are {name}.")
        size = value.numel() * value.element_size()
        if self._pending and self._pending_bytes + size > self.max_bytes:
            self._write()
        self.shapes[name] = tuple(value.shape)
        self._pending[name] = value.detach().contiguous()
        self._pending_bytes += size
        self.total_bytes += size

    def _write(self) -> None:
        save_file(self._pending, self.folder / f"shard-{len(self._shards)}.partial", {"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def close(self) -> None:
        """Write the rest, give the shards their names, and write the index if there are several."""
        if self._pending:
            self._write()
        count = len(self._shards)
        weight_map = {}
        for index, names in enumerate(self._shards):
            file = f"model-{index + 1:05d}-of-{count:05d}.safetensors" if count > 1 else files.WEIGHT_FILES[0]
            move(self.folder / f"shard-{index}.partial", self.folder / file)
            weight_map.update(dict.fromkeys(names, file))
        if count > 1:
            content = {
                "metadata": {"total_size": self.total_bytes},
                "weight_map": dict(sorted(weight_map.items())),
            }
            write_text(self.folder / files.WEIGHT_INDEXES[0], json.dumps(content, indent=2) + "\n")


def write_weights(
    weights: Iterable[tuple[str, torch.Tensor]], folder: Path, *, dtype: torch.dtype | None, max_bytes: int
) -> dict[str, tuple[int, ...]]:
    """Write weights to a folder, in `dtype` unless it is None; returns their shapes by name."""
    writer = ShardWriter(folder, max_bytes)
    for name, value in weights:
        writer.add(name, value.to(dtype) if dtype is not None and value.is_floating_point() else value)
    writer.close()
    return writer.shapes


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: str, *, tied: bool
) -> None:
    """Raise CheckpointError that names weights which are missing, too many or of another shape.

    tied: the head is the embeddings and need not be stored.
    """
    missing = sorted(set(expected) - set(found) - ({HEAD} if tied else set()))
    unexpected = sorted(set(found) - set(expected))
    wrong = sorted(name for name in set(found) & set(expected) if found[name] != expected[name])
    for names, what in (
        (missing, "lacks"),
        (unexpected, "has, with no place for it,"),
        (wrong, "has in another shape"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            shape = f" {found[names[0]]}, expected {expected[names[0]]}" if names is wrong else ""
            raise CheckpointError(f"{path} {what} {', '.join(names[:3])}{more}{shape}.")


def stored_bytes(path: str | Path) -> int:
    """Return the size of a folder's weight files."""
    return sum(file.stat().st_size for file in files.weight_files(path))


# -------------------------------------------------------------------------------------------------- folders


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool, needs_bytes: int) -> Iterator[Path]:
    """Give a scratch folder that becomes `target` when the block ends without an error, else is removed.

    overwrite: an existing folder is replaced, at the end. needs_bytes: what will be written at least. Raises
    CheckpointError when `target` exists, or the disk has not enough room, before or while it is written.
    """
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise CheckpointError(
            f"DST {target} exists; give the name of a new folder, or --overwrite to replace it."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needs_bytes:
        raise CheckpointError(
            f"DST {target} needs {needs_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make "
            "room or give another place."
        )
    with explained_write(target, "DST"), atomic_folder(target) as scratch:
        yield scratch


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype in the way of a config.json."""
    return str(dtype).removeprefix("torch.")
