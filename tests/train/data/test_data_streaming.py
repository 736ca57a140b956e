"""Streams of samples: what shards hold, who reads which, in which order, and what a bad sample does."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recorded_training
import torch
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor
from warming import python

from llava.conversation import conv_templates
from llava.train.args import parse_args
from llava.train.data import streaming
from llava.train.data.dataset import DataCollatorForSupervisedDataset, make_supervised_data_module
from llava.train.data.streaming import StreamingDataset, find_shards, read_shard, stream_loader
from llava.train.records import DataError
from llava.utils import UserError

pytest.importorskip("webdataset")

EDGE = 28


def png(k: int, size: tuple[int, int] = (EDGE, EDGE)) -> bytes:
    """Encode an image of formula k."""
    file = io.BytesIO()
    recorded_training.sample_image(*size, k).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar of the files, in their order."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def record(key: str, question: str = "<image>\nWhat is it?", answer: str | None = None) -> dict[str, Any]:
    """Make a record whose answer is its key."""
    turns = recorded_training.dialog(("human", question), ("gpt", key if answer is None else answer))
    return {"id": key, "conversations": turns}


def sample_files(number: int) -> dict[str, bytes]:
    """Files of one sample in webdataset's layout; every fourth is a text."""
    key = f"s{number:03d}"
    if number % 4 == 3:
        return {f"{key}.json": json.dumps(record(key, "Who?")).encode()}
    return {f"{key}.json": json.dumps(record(key)).encode(), f"{key}.png": png(number)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six tar shards with five samples each, as a name with braces."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(6):
        files: dict[str, bytes] = {}
        for number in range(shard * 5, shard * 5 + 5):
            files.update(sample_files(number))
        write_tar(folder / f"{shard:06d}.tar", files)
    return str(folder / "{000000..000005}.tar")


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessor:
    size = {"height": EDGE, "width": EDGE}
    return CLIPImageProcessor(size={"shortest_edge": EDGE}, crop_size=size)


@pytest.fixture
def make(variant_tokenizer: Any, processor: CLIPImageProcessor) -> Any:
    """Build a StreamingDataset of a data path; keywords are fields of its arguments."""

    def build(data_path: str, **fields: Any) -> StreamingDataset:
        settings = {
            "streaming": True,
            "data_path": data_path,
            "shuffle_buffer": 4,
            "on_bad_sample": "error",
            "image_folder": None,
            "image_processor": processor,
            "image_aspect_ratio": "square",
            "is_multimodal": True,
            "mm_use_im_start_end": False,
        }
        args = SimpleNamespace(**{**settings, **fields})
        tokenizer = variant_tokenizer("legacy")
        module = make_supervised_data_module(tokenizer, args, conv_templates["v1"])
        return module["train_dataset"]

    return build


def keys(dataset: StreamingDataset, count: int) -> list[str]:
    """Take `count` samples and return their keys, which are their answers."""
    stream = iter(dataset)
    found = []
    for _ in range(count):
        labels = next(stream)["labels"]
        found.append(dataset.tokenizer.decode(labels[labels != -100]).replace("</s>", "").strip())
    return found


EVERY_KEY = [f"s{number:03d}" for number in range(30)]


def test_a_pass_reads_every_sample_once_in_an_order_of_the_seed(make: Any, shards: str) -> None:
    dataset = make(shards)
    first = keys(dataset, 60)
    assert sorted(first[:30]) == EVERY_KEY
    assert sorted(first[30:]) == EVERY_KEY
    assert first[:30] != EVERY_KEY and first[:30] != first[30:]
    assert keys(make(shards), 60) == first
    dataset.seed = 1
    assert keys(dataset, 30) != first[:30]


@pytest.mark.parametrize("world_size", [2, 3, 6, 8])
def test_ranks_read_disjoint_parts_that_are_everything(make: Any, shards: str, world_size: int) -> None:
    dataset = make(shards)
    parts = []
    for rank in range(world_size):
        dataset.rank, dataset.world_size = rank, world_size
        raw = [s.record["id"] for shard in _one_pass_shards(dataset) for s in shard]
        parts.append(raw)
    assert sorted(key for part in parts for key in part) == EVERY_KEY
    assert min(map(len, parts)) >= 3


def _one_pass_shards(dataset: StreamingDataset) -> list[list[Any]]:
    """Samples of one pass of this rank, unprepared."""
    found: list[Any] = []
    dataset._make = lambda raw: found.append(raw) or {}  # type: ignore[method-assign, assignment, return-value]
    list(dataset._pass(dataset.rank, dataset.world_size, 0))
    return [found]


def test_loader_workers_share_the_shards(make: Any, shards: str) -> None:
    dataset = make(shards, shuffle_buffer=1)
    collator = DataCollatorForSupervisedDataset(dataset.tokenizer)
    args = SimpleNamespace(
        process_index=0,
        world_size=1,
        seed=3,
        data_seed=None,
        dataloader_num_workers=2,
        dataloader_pin_memory=False,
        dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None,
    )
    loader = stream_loader(dataset, args, 5, collator)
    found = []
    for _, batch in zip(range(6), loader, strict=False):
        assert batch["images"].shape == (5, 3, EDGE, EDGE)
        for labels in batch["labels"]:
            found.append(dataset.tokenizer.decode(labels[labels != -100]).replace("</s>", "").strip())
    assert sorted(found) == EVERY_KEY
    assert dataset.seed == 3


def test_samples_are_those_of_a_data_set_of_files(make: Any, shards: str, tmp_path: Path) -> None:
    (tmp_path / "s000.png").write_bytes(png(0))
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{**record("s000"), "image": "s000.png"}]))
    plain = make(str(path), streaming=False, image_folder=str(tmp_path))[0]
    dataset = make(shards, shuffle_buffer=1)
    streamed = dataset._make(next(read_shard(dataset.shards[0])))
    assert set(streamed) == set(plain)
    for name in plain:
        assert torch.equal(streamed[name], plain[name])


def test_several_images_of_a_sample_keep_their_order(tmp_path: Path) -> None:
    question = "<image> and <image>: <image>?"
    files = {"a.json": json.dumps(record("a", question)).encode()}
    files |= {f"a.{number}.png": png(number, (8 + number, 8)) for number in (10, 2, 0)}
    sample = next(read_shard(str(write_tar(tmp_path / "x.tar", files))))
    assert [streaming.load_image_from_bytes(one, "").width for one in sample.images] == [8, 10, 18]
    assert sample.record["image"] == ["a.0.png", "a.2.png", "a.10.png"]


@pytest.mark.parametrize("form", ["bytes", "struct", "list"])
def test_parquet_with_image_bytes(make: Any, tmp_path: Path, form: str) -> None:
    import pyarrow
    from pyarrow import parquet

    forms = {
        "bytes": png(1),
        "struct": {"bytes": png(1), "path": None},
        "list": [{"bytes": png(1), "path": "p"}],
    }
    rows = [{**record("r0"), "image": forms[form]}, {**record("r1", "Who?"), "image": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset = make(str(tmp_path), shuffle_buffer=1)
    assert keys(dataset, 2) == ["r0", "r1"]
    first = next(iter(dataset))
    (tmp_path / "one.json").write_text(json.dumps([{**record("r0"), "image": "p.png"}]))
    (tmp_path / "p.png").write_bytes(png(1))
    plain = make(str(tmp_path / "one.json"), streaming=False, image_folder=str(tmp_path))[0]
    assert torch.equal(first["image"], plain["image"])


def bad_shard(folder: Path) -> Path:
    """Write a shard with four faults between two good samples."""
    files = sample_files(0)
    files["b1.json"], files["b1.png"] = json.dumps(record("b1")).encode(), png(1)[:90]
    files["b2.json"] = b"{"
    files["b3.png"] = png(1)
    files["b4.json"], files["b4.png"] = json.dumps(record("b4", "no mark")).encode(), png(1)
    return write_tar(folder / "bad.tar", files | sample_files(1))


def test_a_bad_sample_stops_the_run_or_is_skipped_and_counted(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(bad_shard(tmp_path))
    with pytest.raises(DataError, match="bad.tar: b1: the image 'b1.png' is damaged"):
        keys(make(path, shuffle_buffer=1), 2)
    dataset = make(path, shuffle_buffer=1, on_bad_sample="skip")
    assert keys(dataset, 2) == ["s000", "s001"]
    skipped = dataset.skipped.read()
    assert [name.rpartition(" ")[2] for name in skipped] == ["b1", "b2", "b3", "b4"]
    reasons = list(skipped.values())
    assert "not valid JSON" in reasons[1] and "no .json" in reasons[2] and "1 image(s) but 0" in reasons[3]
    assert len([entry for entry in caplog.records if "on_bad_sample" in entry.message]) == 4
    dataset.skipped.close()


def test_a_cut_shard_is_named(make: Any, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "cut.tar", sample_files(0) | sample_files(1)).read_bytes()
    for size, message in (
        (1600, "cut.tar: from here on the shard cannot be read"),
        (1300, "s000: .* no image"),
    ):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=message):
            keys(make(str(tmp_path / "cut.tar")), 3)


def test_shards_without_a_good_sample_end_the_run(make: Any, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "none.tar", {"a.json": b"{"})
    dataset = make(str(path), on_bad_sample="skip")
    with pytest.raises(DataError, match="found no sample"):
        next(iter(dataset))
    dataset.skipped.close()


def test_shard_names(tmp_path: Path, shards: str) -> None:
    assert [Path(one).name for one in find_shards(shards)][::5] == ["000000.tar", "000005.tar"]
    folder = Path(shards).parent
    assert find_shards(str(folder)) == find_shards(shards) == find_shards(str(folder / "*.tar"))
    assert find_shards("pipe:cat a.tar") == ["pipe:cat a.tar"]
    with pytest.raises(DataError, match="2 of 8 shards are missing, the first is .*000006.tar"):
        find_shards(shards.replace("000005", "000007"))
    with pytest.raises(DataError, match="no .tar or .parquet shards"):
        find_shards(str(tmp_path))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="names .json files"):
        find_shards(str(tmp_path / "a.json"))


def test_flags_that_a_stream_cannot_have(tmp_path: Path) -> None:
    flags = [
        "--output_dir",
        str(tmp_path),
        "--data_path",
        "x.tar",
        "--streaming",
        "True",
        "--report_to",
        "none",
    ]
    with pytest.raises(UserError, match="needs --max_steps"):
        parse_args(flags)
    with pytest.raises(UserError, match="drop --group_by_modality_length"):
        parse_args([*flags, "--max_steps", "3", "--group_by_modality_length", "True"])
    assert parse_args([*flags, "--max_steps", "3"])[1].streaming


def test_a_plain_loader_has_no_end(make: Any, shards: str) -> None:
    collator = DataCollatorForSupervisedDataset(make(shards).tokenizer)
    loader = iter(DataLoader(make(shards), batch_size=7, collate_fn=collator))
    assert [len(next(loader)["input_ids"]) for _ in range(10)] == [7] * 10


# ---- training from a stream ----


@pytest.fixture(scope="module")
def chat_shards(tmp_path_factory: pytest.TempPathFactory, training_data: Path) -> str:
    """The finetuning data of the recorded runs as four tar shards."""
    folder = tmp_path_factory.mktemp("chat")
    records = json.loads((training_data / "finetune.json").read_text())
    for shard in range(4):
        files: dict[str, bytes] = {}
        for one in records[shard::4]:
            image = one.pop("image", None)
            files[f"{one['id']}.json"] = json.dumps(one).encode()
            if image:
                files[f"{one['id']}.png"] = (training_data / "images" / image).read_bytes()
        write_tar(folder / f"{shard}.tar", files)
    return str(folder / "{0..3}.tar")


STREAM = (
    "--version v1 --image_aspect_ratio pad --mm_projector_type mlp2x_gelu --mm_use_im_patch_token False "
    "--learning_rate 1e-4 --streaming True --shuffle_buffer 8 --save_strategy no"
)


def test_training_from_a_stream(
    checkpoints: Path, training_data: Path, chat_shards: str, tmp_path: Path
) -> None:
    losses = []
    for workers in (0, 0, 2):
        argv = recorded_training.flags(checkpoints, training_data, tmp_path / f"llava-{len(losses)}", STREAM)
        argv += ["--data_path", chat_shards, "--max_steps", "3", "--dataloader_num_workers", str(workers)]
        run = recorded_training.run_train(argv)
        losses.append(run.loss)
        assert len(run.loss) == 3 and run.trainer.state.global_step == 3
    assert losses[0] == losses[1] != losses[2]  # readers have shards of their own


def test_a_stream_with_images_needs_a_tower(make: Any, shards: str) -> None:
    with pytest.raises(DataError, match="s0.*--vision_tower is missing"):
        list(zip(range(4), make(shards, is_multimodal=False), strict=False))


WATCHED = """
import json, sys
from llava.train.data import streaming
from llava.train.train import train
make = streaming.StreamingDataset._make
def watch(self, raw):
    with open(f"{sys.argv[0]}.{self.rank}", "a") as file:
        file.write(raw.record["id"] + " ")
    return make(self, raw)
streaming.StreamingDataset._make = watch
train()
"""


@pytest.mark.slow
def test_two_ranks_train_on_different_samples(
    checkpoints: Path, training_data: Path, chat_shards: str, tmp_path: Path
) -> None:
    program = tmp_path / "watched.py"
    program.write_text(WATCHED)
    argv = recorded_training.flags(checkpoints, training_data, tmp_path / "llava-out", STREAM)
    argv += ["--data_path", chat_shards, "--max_steps", "3", "--seed", "5", "--use_cpu", "True"]
    command = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run([*command, str(program), *argv], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, second = (Path(f"{program}.{rank}").read_text().split() for rank in range(2))
    # three steps, and a batch that the loader reads ahead
    assert len(first) == len(second) == 16
    assert not set(first) & set(second)
