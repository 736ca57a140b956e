"""Training in two processes on a CPU: DDP, ZeRO-1, -2, -3, offload and FSDP2 do what one process does."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import BIN, ROOT, Training, free_port, launch, read_reports, run_group
from recorded_training import dialog, flags

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import load_weights, read_config, read_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None or not (shutil.which("ninja") or (BIN / "ninja").exists()),
        reason="DeepSpeed compiles its communication for CPUs: needs g++ and ninja",
    ),
]

V15 = "--version v1 --mm_use_im_start_end False --mm_use_im_patch_token False --mm_projector_type mlp2x_gelu"
PROJECTOR = "--pretrain_mm_mlp_adapter {ck}/llava-tiny-pretrain/mm_projector.bin"
DATA = "--data_path {data}/finetune.json"
DIALOGS = f"{DATA} --image_aspect_ratio pad"
# SGD with a constant rate: the change of a weight is the sum of its gradients
GRADIENTS = "--optim sgd --lr_scheduler_type constant --warmup_ratio 0 --max_grad_norm 0 --learning_rate 0.1"
MIXED = f"{V15} --data_path {{data}}/mixed.json {GRADIENTS}"
UNFROZEN = "--unfreeze_mm_vision_tower True"
LORA = (
    "--lora_enable True --lora_r 8 --lora_dropout 0.0 --lora_bias all "
    "--mm_projector_lr 2e-4 --learning_rate 2e-3"
)
HALF = "--bf16 True --gradient_checkpointing True"
V16 = "--mm_patch_merge_type spatial_unpad --image_aspect_ratio anyres"

# what is trained: (flags, base, files that hold the result)
KINDS: dict[str, tuple[str, str]] = {
    "full": (
        f"{V15} {PROJECTOR} {DIALOGS} --learning_rate 2e-3 --gradient_checkpointing True",
        "vicuna-tiny",
    ),
    "stage1": (
        f"{V15} --version plain --data_path {{data}}/pretrain.json --tune_mm_mlp_adapter True "
        "--learning_rate 1e-3",
        "vicuna-tiny",
    ),
    "lora": (f"{V15} {PROJECTOR} {DIALOGS} {LORA}", "vicuna-tiny"),
    "v16": (f"{V15} {V16} {DATA} --learning_rate 2e-3", "llava-tiny-v1.6"),
    # new rows for tokens, and a projector file for a model that already has one
    "tokens": (
        "--version v0 --mm_use_im_start_end True --mm_use_im_patch_token False "
        f"--mm_projector_type mlp2x_gelu {PROJECTOR} {DIALOGS} --learning_rate 2e-3",
        "llava-tiny-v1.5",
    ),
    "mixed": (f"{MIXED} --max_steps 3 {PROJECTOR} --image_aspect_ratio pad", "vicuna-tiny"),
    "anyres": (f"{MIXED} --max_steps 3 {V16}", "llava-tiny-v1.6"),
    "tower": (f"{MIXED} --max_steps 3 {V16} {UNFROZEN}", "llava-tiny-v1.6"),
    # image_newline trains, but square images do not use it
    "unused": (
        f"{V15} --mm_patch_merge_type spatial_unpad {DIALOGS} --learning_rate 2e-3 "
        "--gradient_checkpointing True",
        "llava-tiny-v1.6",
    ),
    "bf16": (f"{V15} {V16} {UNFROZEN} {DATA} --learning_rate 2e-3 {HALF}", "llava-tiny-v1.6"),
    "bf16_lora": (f"{V15} {PROJECTOR} {DIALOGS} {LORA} {HALF}", "vicuna-tiny"),
    # 13 records: neither the last batches are full, nor the last step has all its micro-batches
    "ragged": (
        f"{MIXED} --num_train_epochs 1 --gradient_accumulation_steps 3 {V16} {UNFROZEN}",
        "llava-tiny-v1.6",
    ),
}
WAYS = {
    "ddp": "",
    "fsdp2": "--fsdp full_shard --fsdp_config {data}/fsdp2.json",
    "zero2": f"--deepspeed {ROOT}/scripts/zero2.json",
    "zero3": f"--deepspeed {ROOT}/scripts/zero3.json",
    "offload": f"--deepspeed {ROOT}/scripts/zero3_offload.json",
}
SPLIT = {"zero3": ["zero3"], "offload": ["zero3"], "fsdp2": ["fsdp2"]}
MIXTURES = ("mixed", "anyres", "tower")
TOGETHER = [  # runs of one launch in two processes
    *((way, kind) for way in ("ddp", "fsdp2") for kind in ("full", "stage1", "lora", *MIXTURES)),
    ("ddp", "unused"),
    *(("zero2", kind) for kind in ("full", "stage1", "lora", "v16", *MIXTURES)),
    *(("zero3", kind) for kind in ("full", "stage1", "lora", "v16", "tokens", *MIXTURES)),
]
HALVES = [(way, kind) for way in ("fsdp2", "zero2", "zero3") for kind in ("bf16", "bf16_lora")]
RAGGED = [(way, "ragged") for way in ("ddp", "fsdp2", "zero2", "zero3")]


@dataclass(frozen=True)
class Place:
    """Folders of the runs: checkpoints, data, and one folder a run below `out`."""

    checkpoints: Path
    data: Path
    out: Path

    def training(self, way: str, kind: str) -> Training:
        """Write the command line of a run; "one" is the run in one process that others are compared to."""
        more, base = KINDS[kind]
        steps = "" if "--max_steps" in more or "--num_train_epochs" in more else "--max_steps 4"
        accumulate = "--gradient_accumulation_steps 2" if way == "one" else WAYS[way]
        more = f"{more} {steps} {accumulate} --save_strategy no --per_device_train_batch_size 2"
        return Training(
            f"{way}_{kind}", flags(self.checkpoints, self.data, self.folder(way, kind), more, base=base)
        )

    def folder(self, way: str, kind: str) -> Path:
        """Return the folder that a run writes its model to."""
        return self.out / f"llava-{kind}-{way}"

    def reports(self, way: str, kind: str) -> list[dict[str, Any]]:
        """Return what each process of a run saw."""
        return list(read_reports(self.out, f"{way}_{kind}"))


def _mixed_records() -> list[dict[str, Any]]:
    """Make records so that, in batches of 2, one process has texts only while the other has images."""
    number_of_images = [0, 0, 1, 1, 1, 0, 2, 1, 3, 0, 0, 0, 0]
    records = []
    for k, count in enumerate(number_of_images):
        question = "".join(f"Here is <image> number {j}. " for j in range(count)) + f"What about {k}?"
        turns = dialog(("human", question), ("gpt", f"It is the answer {k * 7} to that."))
        record: dict[str, Any] = {"id": f"m{k}", "conversations": turns}
        if count:
            names = [f"pic_{k + 5 * j:03d}.png" for j in range(count)]
            record["image"] = names[0] if count == 1 else names
        records.append(record)
    return records


@pytest.fixture(scope="module")
def place(checkpoints: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Add the mixed records and the FSDP settings to the training data."""
    root = tmp_path_factory.mktemp("distributed")
    data = root / "data"
    shutil.copytree(training_data, data)
    (data / "mixed.json").write_text(json.dumps(_mixed_records()))
    (data / "fsdp2.json").write_text(json.dumps({"version": 2}))
    return Place(checkpoints, data, root / "out")


@pytest.fixture(scope="module")
def single(place: Place) -> Place:
    """Do the runs in one process."""
    launch(
        place.out,
        [place.training("one", kind) for kind in KINDS if kind != "ragged"],
        processes=1,
        limit_s=180,
    )
    return place


@pytest.fixture(scope="module")
def double(single: Place) -> Place:
    """Do the runs in two processes, all in one launch."""
    runs = sorted(TOGETHER + HALVES + RAGGED, key=lambda run: list(WAYS).index(run[0]))
    launch(single.out, [single.training(way, kind) for way, kind in runs], processes=2, limit_s=400)
    return single


def _check_course(place: Place, way: str, kind: str, tolerance: float = 1e-5) -> None:
    """Losses, learning rates and gradient norms of every step are those of one process."""
    [one] = place.reports("one", kind)
    both = place.reports(way, kind)
    assert len(both) == 2
    for report in both:
        assert report["split"] == SPLIT.get(way, [])
        assert report["steps"] == one["steps"]
    assert both[0]["losses"] == pytest.approx(one["losses"], rel=tolerance)
    assert both[0]["rates"] == pytest.approx(one["rates"])
    assert both[0]["norms"] == pytest.approx(one["norms"], rel=10 * tolerance)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read every weight a run wrote, by the name it has in its file."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        if file.name != "training_args.bin":
            found.update(read_tensors(file))
    return found


def _check_layout(place: Place, way: str, kind: str) -> None:
    """Files, and the names and shapes of weights in them, are those of one process."""
    one, other = place.folder("one", kind), place.folder(way, kind)
    assert sorted(p.name for p in other.iterdir()) == sorted(p.name for p in one.iterdir())
    shapes = [{name: value.shape for name, value in _weights(folder).items()} for folder in (one, other)]
    assert shapes[0] == shapes[1]


def _check_values(place: Place, way: str, kind: str) -> None:
    """Config, dtypes of weights and, within rounding, their values are those of one process."""
    one, other = place.folder("one", kind), place.folder(way, kind)
    assert read_config(str(other)) == read_config(str(one))
    got = _weights(other)
    for name, value in _weights(one).items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("way", "kind"), TOGETHER)
def test_two_processes_do_what_one_does(double: Place, way: str, kind: str) -> None:
    _check_course(double, way, kind)
    _check_layout(double, way, kind)
    _check_values(double, way, kind)


@pytest.mark.parametrize(("way", "kind"), HALVES)
def test_bfloat16_of_two_processes_is_that_of_one_within_its_precision(
    double: Place, way: str, kind: str
) -> None:
    _check_course(double, way, kind, tolerance=1e-2)
    _check_layout(double, way, kind)


@pytest.mark.parametrize(("way", "kind"), [run for run in TOGETHER if run[1] in MIXTURES])
def test_gradients_of_mixed_batches_equal_those_of_one_process(double: Place, way: str, kind: str) -> None:
    """A process with texts only and one with images: every weight changes as in one process."""
    base = KINDS[kind][1]
    before = load_weights(str(double.checkpoints / base))
    after_one, after = _weights(double.folder("one", kind)), _weights(double.folder(way, kind))
    moved = 0
    for name in before.keys() & after.keys():
        change = after_one[name] - before[name].float()
        other = after[name] - before[name].float()
        torch.testing.assert_close(other, change, rtol=1e-3, atol=1e-6 + 1e-4 * float(change.abs().max()))
        moved += bool(change.abs().max() > 1e-6)
    assert moved > 15


@pytest.mark.parametrize(("way", "kind"), [run for run in TOGETHER if run[1] in MIXTURES] + RAGGED)
def test_parts_are_called_once_a_micro_batch_on_every_process(double: Place, way: str, kind: str) -> None:
    first, second = double.reports(way, kind)
    # what the processes had was different: texts beside images, several images beside one
    assert first["marks"][:3] == [0, 1, 3]
    assert second["marks"][:3] == [2, 3, 0]
    batches = 4 if kind == "ragged" else 3
    for report in (first, second):
        assert report["steps"] == (2 if kind == "ragged" else 3)
        assert report["calls"] == [{"tower": 1, "projector": 1, "embedding": 1}] * batches


@pytest.mark.parametrize("kind", ["full", "stage1", "lora", "v16"])
def test_saved_under_zero3_loads(double: Place, kind: str) -> None:
    """load_pretrained_model reads what ZeRO-3 wrote; the features are those of the run in one process."""
    features = []
    for way in ("one", "zero3"):
        folder = double.folder(way, kind)
        base = str(double.checkpoints / "vicuna-tiny") if kind in ("stage1", "lora") else None
        name = get_model_name_from_path(str(folder)) + ("-lora" if kind == "lora" else "")
        _, model, _, _ = load_pretrained_model(str(folder), base, name, device="cpu")
        pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features.append(model.float().encode_images(pixels))
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=2e-3)


def test_offload_does_what_one_process_does(single: Place) -> None:
    """zero3_offload.json keeps the flags' optimizer, projector rate and schedule, on DeepSpeed's CPU Adam."""
    kinds = ("full", "lora")
    trainings = [single.training("offload", kind) for kind in kinds]
    launch(single.out, trainings, processes=2, limit_s=420)  # the first time CPU Adam is compiled
    for kind in kinds:
        _check_course(single, "offload", kind)
        _check_layout(single, "offload", kind)
        _check_values(single, "offload", kind)


def test_a_deepspeed_config_may_have_optimizer_or_scheduler(single: Place) -> None:
    """With an optimizer of its own the flags' schedule applies; with a scheduler, that one."""
    optimizer = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}}
    warmup = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
    scheduler = {"type": "WarmupLR", "params": warmup}
    zero2 = json.loads((ROOT / "scripts" / "zero2.json").read_text())
    parts = {
        "neither": {},
        "optimizer": {"optimizer": optimizer},
        "scheduler": {"scheduler": scheduler},
        "both": {"optimizer": optimizer, "scheduler": scheduler},
    }
    trainings = []
    for name, own in parts.items():
        file = single.out / f"zero2_{name}.json"
        file.write_text(json.dumps({**zero2, **own}))
        more = f"{KINDS['full'][0]} --max_steps 4 --save_strategy no --deepspeed {file}"
        argv = flags(single.checkpoints, single.data, single.out / f"llava-{name}", more, base="vicuna-tiny")
        trainings.append(Training(f"own_{name}", argv))
    launch(single.out, trainings, processes=2, limit_s=300)
    found = {name: list(read_reports(single.out, f"own_{name}"))[0] for name in parts}
    assert len(set(found["neither"]["rates"])) > 1  # the flags' schedule is no constant
    assert found["optimizer"]["losses"] == pytest.approx(found["neither"]["losses"], abs=1e-4)
    # DeepSpeed steps a scheduler that its engine asked for before the rate is logged
    assert found["optimizer"]["rates"][:-1] == pytest.approx(found["neither"]["rates"][1:])
    assert found["both"]["losses"] == pytest.approx(found["scheduler"]["losses"], abs=1e-4)
    assert found["both"]["losses"] != pytest.approx(found["neither"]["losses"], abs=1e-4)


def test_a_script_runs_under_the_deepspeed_launcher(place: Place) -> None:
    """scripts/v1_5/finetune.sh as it is, two processes, a data set that does not fill the last batch."""
    output = place.out / "llava-script"
    paths = {
        "MODEL_PATH": place.checkpoints / "vicuna-tiny",
        "VISION_TOWER": place.checkpoints / "tiny-clip",
        "PROJECTOR": place.checkpoints / "llava-tiny-pretrain" / "mm_projector.bin",
        "DATA_PATH": place.data / "mixed.json",
        "IMAGE_FOLDER": place.data / "images",
        "OUTPUT_DIR": output,
        "DEEPSPEED_FLAGS": f"--num_gpus 2 --master_port {free_port()}",
    }
    more = "--report_to none --per_device_train_batch_size 2 --dataloader_num_workers 0"
    run_group(
        ["bash", str(ROOT / "scripts" / "v1_5" / "finetune.sh"), *more.split()],
        limit_s=420,
        **{name: str(value) for name, value in paths.items()},
    )
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["global_step"] == 4  # 13 records in batches of 4
    assert all(
        torch.isfinite(torch.tensor(entry["loss"])) for entry in state["log_history"] if "loss" in entry
    )
    assert "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding" in _weights(output)
