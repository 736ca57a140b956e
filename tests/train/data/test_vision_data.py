"""Training on tiles, on several images and on texts alone: the same inputs and features as at inference."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from recorded_training import DATA, Run, dialog, flags, run_train

from llava.mm_utils import get_model_name_from_path, parse_grid_pinpoints, process_images
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import read_config, read_tensors
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.features import merge_tiles
from llava.train.llava_trainer import LLaVATrainer
from llava.utils import UserError

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
GRIDS = "[[56,112],[112,56],[112,112],[168,56]]"
TILES = f"--version v1 {V15} --image_aspect_ratio anyres --learning_rate 1e-3 --save_strategy no"
ANSWER = ("gpt", "The red cat stands on the left.")


def _run_on(records: Sequence[dict[str, Any]], more: str, paths: tuple[Path, Path, Path], **kw: Any) -> Run:
    """Train one step on records. paths: checkpoints, training data, folder for the output."""
    checkpoints, data, tmp_path = paths
    (tmp_path / "records.json").write_text(json.dumps(records))
    command = f"{more} --data_path {tmp_path}/records.json --max_steps 1"
    argv = flags(checkpoints, data, tmp_path / "llava-out", command, base=kw.pop("base", "vicuna-tiny"))
    return run_train(argv, order=range(len(records)), **kw)


# ---- tiles ----


def _features_in_generate(model: Any, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Generate a token for an image; returns the features (length, C) that the LLM was given."""
    seen: list[torch.Tensor] = []
    features = type(model).image_features

    def watch(*args: Any) -> list[torch.Tensor]:
        seen.extend(features(*args))
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "image_features", watch)
        ids = torch.tensor([[1, -200, 5]])
        model.eval().generate(ids, images=pixels, image_sizes=[size], max_new_tokens=1)
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
def test_training_sees_the_features_of_inference(
    merge: str, checkpoints: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record with an image, one with two between texts, one without."""
    names = ["pic_000.png", "pic_003.png", "pic_001.png"]
    records = [
        {"image": names[0], "conversations": dialog(("human", "<image>\nWhat?"), ANSWER)},
        {"image": names[1:], "conversations": dialog(("human", "Is <image> like <image>?"), ANSWER)},
        {"conversations": dialog(("human", "Where?"), ANSWER)},
    ]
    compared: list[str] = []
    step = LLaVATrainer.training_step

    def compare(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        found = model.image_features(inputs["images"], inputs["image_sizes"])
        processor = model.get_vision_tower().image_processor
        for index, name in enumerate(names):
            sample_image = Image.open(training_data / "images" / name)
            pixels = process_images([sample_image], processor, model.config)
            assert torch.equal(inputs["images"][index], pixels[0])
            generated = _features_in_generate(model, pixels, sample_image.size)
            assert torch.allclose(generated, found[index], rtol=1e-5, atol=1e-6)
            compared.append(name)
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LLaVATrainer, "training_step", compare)
    more = f"{TILES} --mm_patch_merge_type {merge} --image_grid_pinpoints {GRIDS}"
    run = _run_on(records, more, (checkpoints, training_data, tmp_path))
    assert compared == names
    config = read_config(tmp_path / "llava-out")
    assert config["image_grid_pinpoints"] == json.loads(GRIDS)
    assert config["mm_patch_merge_type"] == merge and config["image_aspect_ratio"] == "anyres"
    assert ("model.image_newline" in run.trained) == (merge == "spatial_unpad")


def _unpadded_length(size: tuple[int, int], grids: Sequence[tuple[int, int]], edge: int, side: int) -> int:
    """Tokens of an image by the formula of LLaVA-1.6: overview, plus lines of patches with their ends."""
    width, height = size
    fitting = []
    for place, (grid_width, grid_height) in enumerate(grids):
        scale = min(grid_width / width, grid_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        fitting.append((-kept, grid_width * grid_height - kept, place))
    grid_width, grid_height = grids[min(fitting)[2]]
    columns, rows = grid_width // edge * side, grid_height // edge * side
    if width / height > columns / rows:
        rows -= (rows - int(height * columns / width)) // 2 * 2
    else:
        columns -= (columns - int(width * rows / height)) // 2 * 2
    return side * side + rows * (columns + 1)


def test_token_count_is_the_formula() -> None:
    """1,000 sizes with the grids of LLaVA-1.6 (336 pixels, patches of 14)."""
    grids = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    settings = MultimodalConfig.of(
        type("Config", (), {
            "image_grid_pinpoints": grids, "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
        })
    )  # fmt: skip
    draw = random.Random(0)
    for _ in range(1000):
        size = (draw.randint(16, 2000), draw.randint(16, 2000))
        expected = _unpadded_length(size, grids, 336, 24)
        canvas = {2: grids[:2], 4: grids[2:3], 3: grids[3:]}
        lengths = set()
        for tiles in canvas:  # the right number of tiles is taken, others are refused
            features = torch.zeros(1 + tiles, 576, 1)
            try:
                merged = merge_tiles(
                    features,
                    size,
                    settings=settings,
                    patches_per_side=24,
                    tile_size=336,
                    image_newline=torch.zeros(1),
                )
            except UserError:
                continue
            lengths.add(len(merged))
        assert lengths == {expected}, size


def test_new_lines_train_in_stage_1_and_reach_the_next(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    tiles = f"--mm_patch_merge_type spatial_unpad --image_grid_pinpoints {GRIDS}"
    records = [
        {"image": "pic_003.png", "conversations": dialog(("human", "<image>\nWhat?"), ANSWER)},
    ]
    paths = (checkpoints, training_data, tmp_path)
    stage_1 = TILES.replace("--version v1", "--version plain") + " --tune_mm_mlp_adapter True"
    first = _run_on(records, f"{stage_1} {tiles} --output_dir {tmp_path}/llava-first", paths)
    assert "model.image_newline" in first.trained
    stored = read_tensors(tmp_path / "llava-first" / "mm_projector.bin")
    trained = first.trainer.model.get_model().image_newline
    assert torch.equal(stored["model.image_newline"], trained)
    folder = tmp_path / "llava-first"
    _, model, _, _ = load_pretrained_model(
        str(folder),
        str(checkpoints / "vicuna-tiny"),
        get_model_name_from_path(str(folder)),
        device="cpu",
        dtype=torch.float32,
    )
    assert torch.equal(model.get_model().image_newline, trained)
    more = f"{TILES} {tiles} --pretrain_mm_mlp_adapter {folder}/mm_projector.bin --learning_rate 0"
    second = _run_on(records, more, paths)
    assert torch.equal(second.trainer.model.get_model().image_newline, trained)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "needs tile grids"),
        ("--image_grid_pinpoints [[56,100]]", "no multiple of 56"),
        ("--image_grid_pinpoints 56", "expected pairs"),
    ],
)
def test_unusable_grids_are_refused(
    more: str, message: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        _run_on(
            [{"conversations": dialog(ANSWER)}], f"{TILES} {more}", (checkpoints, training_data, tmp_path)
        )


def test_grids_of_the_model_are_kept(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    records = [{"image": "pic_003.png", "conversations": dialog(("human", "<image>\nWhat?"), ANSWER)}]
    paths = (checkpoints, training_data, tmp_path)
    run = _run_on(records, f"{TILES} --mm_patch_merge_type spatial_unpad", paths, base="llava-tiny-v1.6")
    own = read_config(checkpoints / "llava-tiny-v1.6")["image_grid_pinpoints"]
    assert parse_grid_pinpoints(run.trainer.model.config.image_grid_pinpoints) == [tuple(one) for one in own]


# ---- several images ----


def test_each_image_reaches_its_place(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    """Exchanging images among their places changes the loss; the same order gives the same loss."""
    paths = (checkpoints, training_data, tmp_path)
    more = f"--version v1 {V15} --image_aspect_ratio pad --learning_rate 1e-3 --save_strategy no"
    more += f" --pretrain_mm_mlp_adapter {DATA}/init_projector_mlp.bin"

    def loss(names: list[str]) -> float:
        question = ("human", "First <image>\nthen <image> and again <image>?")
        return _run_on([{"image": names, "conversations": dialog(question, ANSWER)}], more, paths).loss[0]

    a, b = "pic_000.png", "pic_003.png"
    losses = [loss([a, a, b]), loss([a, b, a]), loss([b, a, a]), loss([a, a, b])]
    assert losses[0] == losses[3]
    assert len(set(losses[:3])) == 3


# ---- texts alone ----

TEXTS = [{"conversations": dialog(("human", f"Where is number {k}?"), ANSWER)} for k in range(6)]


@pytest.mark.parametrize("more", ["", "--lora_enable True --lora_r 4", "--group_by_modality_length True"])
@pytest.mark.parametrize("tower", [False, True])
def test_texts_alone_train(
    more: str, tower: bool, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    command = f"--version v1 {V15} --data_path {tmp_path}/texts.json --max_steps 3 --learning_rate 5e-3"
    argv = flags(checkpoints, training_data, tmp_path / "out-lora", f"{command} {more} --save_strategy no")
    if not tower:
        place = argv.index("--vision_tower")
        argv = argv[:place] + argv[place + 2 :]
    run = run_train(argv)
    assert run.loss[-1] < run.loss[0]
    assert any("mm_projector" in name for name in run.trained) == tower
    base = str(checkpoints / "vicuna-tiny") if "lora" in more else None
    _, model, processor, _ = load_pretrained_model(
        str(tmp_path / "out-lora"), base, "llava-out-lora", device="cpu", dtype=torch.float32
    )
    assert (processor is not None) == tower
    assert model(torch.tensor([[1, 5, 6]])).logits.isfinite().all()


def test_texts_alone_train_a_tower_without_effect(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    """The dummy image of a text keeps the tower in the graph and leaves it as it is."""
    more = f"--version v1 {V15} --image_aspect_ratio pad --learning_rate 1e-3 --unfreeze_mm_vision_tower True"
    run = _run_on(TEXTS[:3], f"{more} --save_strategy no", (checkpoints, training_data, tmp_path))
    tower = run.trainer.model.get_vision_tower()
    own = type(tower)(str(checkpoints / "tiny-clip"), run.trainer.model.config)
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in tower.state_dict().items())
