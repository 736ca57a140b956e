"""Samples as a stream, for data larger than a disk: tar shards (webdataset) and parquet with images."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation
from llava.images import IMAGE_ENDINGS, load_image_from_bytes
from llava.train.data.braces import expand_braces
from llava.train.data.readers import parquet_records
from llava.train.data.samples import Sample, SampleMaker
from llava.train.data.skipped import MAX_IN_A_ROW, SkipLog
from llava.train.plan import DataSettings, adapted
from llava.train.records import (
    SAMPLE_KEY,
    DataError,
    explain_unread_key,
    find_fault,
    has_video,
    media_names,
    stray_image_tokens,
    unread_media_key,
)
from llava.utils import UserError, import_optional
from llava.video import VIDEO_ENDINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

logger = logging.getLogger(__name__)

FORMATS = (".tar", ".parquet")
Item = TypeVar("Item")
SAMPLES_PEEKED = 16


@dataclass(frozen=True)
class RawSample:
    """A sample as it stands in its shard: its name, its record, and the bytes of its images in order."""

    name: str
    record: Any  # a Record; None where it could not be read
    images: tuple[bytes, ...]
    fault: str = ""


class StreamingDataset(IterableDataset[Sample]):
    """Endless stream of samples, read from shards in an order that depends on the seed only.

    Each rank and loader worker reads shards of its own; where there are fewer shards than readers, they
    share all shards sample by sample. The trainer sets rank, world_size and seed before the first sample.
    """

    def __init__(
        self,
        data_path: str,
        tokenizer: PreTrainedTokenizerBase,
        data_args: object,
        conv: Conversation | None = None,
    ) -> None:
        """Find the shards. data_args: DataSettings, or an object with its fields. Raises DataError."""
        super().__init__()
        self.shards = find_shards(data_path)
        self.tokenizer = tokenizer
        self.data_args = data_args  # as given: subclasses of other projects have fields of their own there
        self.settings = adapted(DataSettings, data_args)
        self.maker = SampleMaker(tokenizer, self.settings, conv)
        self.shuffle_buffer = max(1, self.settings.shuffle_buffer)
        self.skipped = SkipLog() if self.settings.skips_bad_samples else None
        self.rank, self.world_size, self.seed = 0, 1, 0
        self._with_images = 0  # samples that this reader has seen
        self._unread: set[str] = set()  # keys that it has warned about

    def peek(self) -> list[RawSample]:
        """Read the first samples of the first shard; none where it is not a file on this machine."""
        if not os.path.isfile(self.shards[0]):
            return []
        return list(islice(read_shard(self.shards[0]), SAMPLES_PEEKED))

    def with_settings(self, settings: DataSettings) -> StreamingDataset:
        """Return the same stream with other settings of its images."""
        other = copy(self)
        other.data_args = other.settings = settings
        other.maker = SampleMaker(self.tokenizer, settings, self.maker.conv)
        return other

    def __iter__(self) -> Iterator[Sample]:
        """Yield samples without end. Raises DataError naming the sample, or when a pass yields none."""
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        reader = self.rank * workers + (0 if worker is None else worker.id)
        epoch = 0
        while True:
            found = False
            for sample in self._pass(reader, self.world_size * workers, epoch):
                found = True
                yield sample
            if not found:
                raise DataError(
                    f"reader {reader + 1} of {self.world_size * workers} found no sample in its shards of "
                    f"{self.shards[0]} ...; use fewer --dataloader_num_workers, or more shards"
                )
            if not epoch and self.settings.is_multimodal and not self._with_images:
                logger.warning(
                    "no sample of the stream had an image in a whole pass, although --vision_tower is given"
                )
            epoch += 1

    def _pass(self, reader: int, readers: int, epoch: int) -> Iterator[Sample]:
        """Yield the samples of one reader in one pass over the data."""
        order = random.Random(f"{self.seed} {epoch}")  # the same in every reader
        shards = order.sample(self.shards, len(self.shards))
        if len(shards) >= readers:
            raw = (sample for shard in shards[reader::readers] for sample in read_shard(shard))
        else:
            everything = (sample for shard in shards for sample in read_shard(shard))
            raw = (sample for number, sample in enumerate(everything) if number % readers == reader)
        shuffled = shuffle(raw, self.shuffle_buffer, random.Random(f"{self.seed} {epoch} {reader}"))
        failures = 0  # in a row
        for one in shuffled:
            try:
                sample = self._make(one)
            except UserError as error:
                failures += 1
                reason = f"{one.name}: {error}"
                if self.skipped is None or failures >= MAX_IN_A_ROW:
                    raise DataError(reason) from error
                self.skipped.add(one.name, reason)
                continue
            failures = 0
            yield {**sample, SAMPLE_KEY: one.name}

    def _make(self, raw: RawSample) -> Sample:
        """Check and prepare a sample. Raises UserError."""
        fault = raw.fault or find_fault(raw.record)
        if fault:
            raise DataError(fault)
        names = media_names(raw.record)
        self._with_images += bool(names)
        self._warn_of_unread_key(raw)
        if names and not self.settings.is_multimodal:
            what = "a video" if has_video(raw.record) else "an image"
            raise DataError(f"it has {what}, but --vision_tower is missing")
        if stray_image_tokens(raw.record):  # its image was forgotten, or cut off with the end of the shard
            raise DataError(f"its text has {DEFAULT_IMAGE_TOKEN}, but the shard has no image of that name")
        if not raw.images:
            return self.maker.make(raw.record)  # a text, or media that lie in --image_folder
        images: list[Image.Image] = [
            load_image_from_bytes(data, name) for data, name in zip(raw.images, names, strict=True)
        ]
        return self.maker.make(raw.record, images=images)

    def _warn_of_unread_key(self, raw: RawSample) -> None:
        key = unread_media_key(raw.record)
        if key is not None and key not in self._unread:
            self._unread.add(key)
            logger.warning("%s, and perhaps others: %s", raw.name, explain_unread_key(key))


def stream_loader(
    dataset: StreamingDataset, args: TrainingArguments, batch_size: int, collate_fn: Callable[..., Any]
) -> Any:
    """Build the loader of a stream, of which each rank reads its own part. args: TrainingArguments."""
    from accelerate.data_loader import prepare_data_loader

    dataset.rank, dataset.world_size = args.process_index, args.world_size
    dataset.seed = args.seed if args.data_seed is None else args.data_seed
    readers = args.world_size * max(args.dataloader_num_workers, 1)
    if len(dataset.shards) % readers:
        logger.warning(
            "%d shards for %d readers (ranks x loader workers): some samples are read more often than "
            "others; a multiple is best",
            len(dataset.shards),
            readers,
        )
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate_fn,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    # the stream is sharded already: accelerate must not shard it again
    return prepare_data_loader(loader, num_processes=1, process_index=0, put_on_device=False)


def shuffle(items: Iterator[Item], size: int, order: random.Random) -> Iterator[Item]:
    """Yield items in random order, each drawn from the next `size` that are not drawn yet."""
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = order.randrange(size)
        buffer[place], item = item, buffer[place]
        yield item
    order.shuffle(buffer)
    yield from buffer


# ---- shards ----


def find_shards(data_path: str) -> list[str]:
    """Return the shards that a name with {000..099}, a folder or a pattern means. Raises DataError."""
    import glob

    folder = Path(data_path)
    if os.path.isdir(folder):
        found = sorted(str(one) for one in folder.iterdir() if one.suffix in FORMATS)
    elif any(mark in data_path for mark in "*?[") and not os.path.exists(folder):
        found = sorted(glob.glob(data_path, recursive=True))
    else:
        found = expand_braces(data_path)
    if not found:
        raise DataError(f"there are no {' or '.join(FORMATS)} shards at {data_path}; check --data_path")
    _check_shards(data_path, found)
    return found


def _check_shards(data_path: str, found: Sequence[str]) -> None:
    kinds = sorted({Path(one).suffix for one in found})
    if len(kinds) > 1 or kinds[0] not in FORMATS:
        raise DataError(
            f"{data_path} names {', '.join(kind or 'other' for kind in kinds)} files; --streaming True reads "
            f"either {' or '.join(FORMATS)} shards"
        )
    missing = [
        one for one in found if "://" not in one and not one.startswith("pipe:") and not os.path.isfile(one)
    ]
    if missing:
        raise DataError(f"{len(missing)} of {len(found)} shards are missing, the first is {missing[0]}")


def read_shard(shard: str) -> Iterator[RawSample]:
    """Yield the samples of a shard; where it cannot be read any further, a sample with that fault."""
    try:
        yield from _read_tar(shard) if Path(shard).suffix == ".tar" else _read_parquet(shard)
    except UserError:
        raise
    except Exception as error:  # a broken archive or connection raises almost anything
        reason = f"{type(error).__name__}: {error.args[0] if error.args else error}"
        yield RawSample(shard, None, (), f"from here on the shard cannot be read ({reason})")


def _read_tar(shard: str) -> Iterator[RawSample]:
    """Yield samples of a tar shard: KEY.json is the record; KEY.jpg, or KEY.0.jpg and so on, its images."""
    webdataset = import_optional(
        "webdataset.tariterators", needed_for=f"reading {shard}", install="llava[train]"
    )
    for files in webdataset.tarfile_samples([{"url": shard}]):
        name = f"{shard}: {files['__key__']}"
        images = {key: files[key] for key in _image_keys(files)}
        video = next((key for key in files if key.rpartition(".")[2] in VIDEO_ENDINGS), None)
        if video is not None:
            reason = f"it has the video {video!r}, which is not read from a shard; name a file in 'video'"
            yield RawSample(name, None, (), reason)
            continue
        if "json" not in files:
            yield RawSample(name, None, (), f"it has {', '.join(images) or 'no file'}, but no .json")
            continue
        try:
            record = json.loads(files["json"])
        except (ValueError, RecursionError) as error:
            yield RawSample(name, None, (), f"its .json is not valid JSON ({error})")
            continue
        if images and isinstance(record, dict):
            record["image"] = [f"{files['__key__']}.{key}" for key in images]
        yield RawSample(name, record, tuple(images.values()))


def _image_keys(files: Mapping[str, Any]) -> list[str]:
    """Return the endings of a sample's images in their order: "jpg", or "0.jpg", "1.jpg" and so on."""
    endings = [key for key in files if key.rpartition(".")[2] in IMAGE_ENDINGS]
    return sorted(
        endings, key=lambda key: (int(number) if (number := key.split(".")[0]).isdigit() else -1, key)
    )


def _read_parquet(shard: str) -> Iterator[RawSample]:
    """Yield samples of a parquet shard; `image` holds bytes, {"bytes", "path"} or a list of either."""
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(shard) if "://" in shard else (None, shard)
    for number, (record, _) in enumerate(parquet_records(path, filesystem)):
        given = [_bytes_or_name(one) for one in _as_list(record.get("image", []))]
        name = f"{shard}: row {number}"
        images = tuple(one for one in given if isinstance(one, bytes))
        if images and len(images) == len(given):
            record["image"] = [f"row {number}, image {place}" for place in range(len(given))]
        elif given:
            record["image"] = given  # names of files in --image_folder
        yield RawSample(name, record, images if len(images) == len(given) else ())


def _bytes_or_name(image: object) -> Any:
    """Return an image's bytes, or its file name if it has none; `datasets` stores images as such a pair."""
    if isinstance(image, Mapping):
        return image.get("path") if image.get("bytes") is None else image["bytes"]
    return image


def _as_list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
