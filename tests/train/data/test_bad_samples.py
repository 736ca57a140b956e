"""--on_bad_sample: an error names the record; skip replaces it the same way everywhere and tells of it."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recorded_training
import torch
import torch.distributed as dist
from recorded_training import dialog
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor

from llava.conversation import conv_templates
from llava.train.args import DataArguments
from llava.train.data import dataset as dataset_module
from llava.train.data.dataset import LazySupervisedDataset
from llava.train.data.skipped import SkipLog, report_skipped
from llava.train.records import DataError
from llava.utils import UserError

EDGE = 28
GOOD_IMAGES = (0, 2, 4, 6)  # even records have images, odd ones are texts
BROKEN, MISSING, WRONG_TURNS = 8, 10, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve records; 8 has a cut image, 10 none, and 3 wrong turns."""
    root = tmp_path_factory.mktemp("data")
    records = []
    for k in range(12):
        question = f"<image>\nWhat is {k}?" if k % 2 == 0 else f"Who is {k}?"
        records.append({"id": f"r{k}", "conversations": dialog(("human", question), ("gpt", f"It is {k}."))})
        if k % 2 == 0:
            records[-1]["image"] = f"{k}.png"
            recorded_training.sample_image(EDGE, EDGE, k).save(root / f"{k}.png")
    (root / f"{BROKEN}.png").write_bytes((root / f"{BROKEN}.png").read_bytes()[:90])
    (root / f"{MISSING}.png").unlink()
    records[WRONG_TURNS]["conversations"][1]["from"] = "robot"
    (root / "data.json").write_text(json.dumps(records))
    return root


@pytest.fixture
def make(folder: Path, variant_tokenizer: Callable[..., Any]) -> Callable[..., LazySupervisedDataset]:
    """Build the data set with a policy; `image_folder` may be another."""
    size = {"height": EDGE, "width": EDGE}

    def build(policy: str, image_folder: Path = folder) -> LazySupervisedDataset:
        args = SimpleNamespace(
            on_bad_sample=policy,
            image_folder=str(image_folder),
            image_processor=CLIPImageProcessor(size={"shortest_edge": EDGE}, crop_size=size),
            image_aspect_ratio="square",
            is_multimodal=True,
            mm_use_im_start_end=False,
        )
        tokenizer = variant_tokenizer("legacy")
        return LazySupervisedDataset(str(folder / "data.json"), tokenizer, args, conv_templates["v1"])

    return build


def number(dataset: LazySupervisedDataset, sample: dict[str, Any]) -> int:
    """Return the number that a sample's answer names."""
    labels = sample["labels"]
    return int(dataset.tokenizer.decode(labels[labels != -100]).replace("</s>", "").strip(" .").split()[-1])


def test_an_error_names_the_record(make: Any, folder: Path) -> None:
    with pytest.raises(DataError, match=r"record 3 \(id 'r3'\): turn 1 is from 'robot'"):
        make("error")
    dataset = make("skip")
    dataset.skipped = None  # as without the flag, past the check at the start
    for k in (BROKEN, MISSING, WRONG_TURNS):
        with pytest.raises(DataError, match=f"^record {k} "):
            dataset[k]


def test_the_next_good_sample_of_the_same_kind_takes_the_place(
    make: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    dataset = make("skip")
    found = [number(dataset, dataset[k]) for k in range(12)]
    assert found == [0, 1, 2, 5, 4, 5, 6, 7, 0, 9, 0, 11]
    assert [number(dataset, dataset[k]) for k in (10, 8, 3)] == [0, 0, 5]  # in any order, again
    assert len(dataset.lengths) == 12 and (dataset.modality_lengths != 0).all()
    assert len([entry for entry in caplog.records if entry.message.startswith("skipped")]) == 3
    caplog.clear()
    with caplog.at_level(logging.INFO):
        skipped = report_skipped(dataset, tmp_path)
    assert list(skipped) == ["record 10 (id 'r10')", "record 3 (id 'r3')", "record 8 (id 'r8')"]
    assert json.loads((tmp_path / "skipped_samples.json").read_text()) == skipped
    assert "3 sample(s) could not be used" in caplog.text and "record 8 (id 'r8')" in caplog.text


def test_loader_workers_tell_what_they_skip(make: Any, tmp_path: Path) -> None:
    dataset = make("skip")
    loader = DataLoader(dataset, batch_size=3, num_workers=2, collate_fn=list)
    found = [number(dataset, sample) for batch in loader for sample in batch]
    assert found == [0, 1, 2, 5, 4, 5, 6, 7, 0, 9, 0, 11]
    assert len(report_skipped(dataset, tmp_path)) == 3


def test_a_run_without_bad_samples_says_so(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make("skip")
    assert number(dataset, dataset[0]) == 0
    with caplog.at_level(logging.INFO):
        assert report_skipped(dataset, tmp_path) == {}
    assert "no sample was skipped" in caplog.text and not list(tmp_path.iterdir())


def test_nothing_but_bad_samples_stops_the_run(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make("skip", image_folder=tmp_path)
    with pytest.raises(DataError, match=r"record 2 .* cannot be used, .*check --image_folder"):
        dataset[2]
    dataset.skipped.close()
    dataset = make("skip", image_folder=tmp_path)
    monkeypatch.setattr(dataset_module, "MAX_IN_A_ROW", 2)
    with pytest.raises(DataError):
        dataset[4]
    assert len(dataset.skipped.read()) == 2
    dataset.skipped.close()


def test_the_flag_is_checked() -> None:
    assert DataArguments().on_bad_sample == "error"
    with pytest.raises(UserError, match="--on_bad_sample is 'ignore'; expected one of error, skip"):
        DataArguments(on_bad_sample="ignore")


def _rank(rank: int, folder: Path, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    log = SkipLog()
    log.add(f"record {rank}", "broken")
    log.add("record 7", "broken")
    results.put((rank, report_skipped(SimpleNamespace(skipped=log), folder / f"out{rank}")))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_tell_together(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")  # torch is loaded already
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert set(found[0]) == set(found[1]) == {"record 0", "record 1", "record 7"}
    assert (tmp_path / "out0" / "skipped_samples.json").exists() and not (tmp_path / "out1").exists()


def test_a_run_of_training_skips_and_reports(
    checkpoints: Path, training_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = json.loads((training_data / "finetune.json").read_text())[:16]
    records[4]["image"] = "gone.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    more = (
        f"--version v1 --data_path {tmp_path}/data.json --mm_projector_type mlp2x_gelu --save_strategy no "
        "--mm_use_im_patch_token False --learning_rate 1e-4 --group_by_modality_length True"
    )
    output = tmp_path / "llava-out"
    argv = recorded_training.flags(checkpoints, training_data, output, more)
    with pytest.raises(DataError, match=r"record 4 \(id 'f4'\): the image .*gone.png"):
        recorded_training.run_train(argv)
    run = recorded_training.run_train([*argv, "--on_bad_sample", "skip"])
    assert len(run.loss) == 4 and sorted(run.read) == list(range(16))
    assert list(json.loads((output / "skipped_samples.json").read_text())) == ["record 4 (id 'f4')"]
    assert "1 sample(s) could not be used and were replaced" in caplog.text
