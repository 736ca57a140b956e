"""run_manifest.json: what a run was started with (command, versions, data, seed), what has changed."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.atomic import write_text
from llava.model.checkpoints.checksums import PARTS, fingerprint
from llava.model.checkpoints.files import CONFIG_FILE, WEIGHT_FILES, WEIGHT_INDEXES
from llava.train.data.sources import MIXTURES, find_sources
from llava.train.data.streaming import find_shards
from llava.train.plan import RunPlan, adapted
from llava.train.tunable import OTHER_FLAGS
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from llava.train.args import DataArguments, ModelArguments

logger = logging.getLogger(__name__)

MANIFEST_FILE = "run_manifest.json"
STREAM_PARTS = 256  # blocks of 64 KiB that are read of all shards together, but at least two of each
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "bitsandbytes",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "numpy",
    "pillow",
)
# Settings that change where and how a run reports and saves, but not what it computes.
_NO_EFFECT = (
    "cache_dir data_cache_dir lazy_preprocess output_dir logging_dir run_name report_to disable_tqdm "
    "log_level log_level_replica log_on_each_node logging_strategy logging_first_step logging_steps "
    "logging_nan_inf_filter save_strategy save_steps save_total_limit save_only_model save_on_each_node "
    "resume resume_from_checkpoint overwrite_output_dir restore_callback_states_from_checkpoint on_nonfinite "
    "local_rank use_cpu no_cuda push_to_hub hub_model_id hub_strategy hub_token hub_private_repo "
    "hub_always_push hub_revision dataloader_num_workers dataloader_pin_memory ddp_timeout "
    "dataloader_persistent_workers dataloader_prefetch_factor evaluation_strategy project trackio_space_id "
    "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size eval_data_path dry_run "
    "verbose_libraries eval_tasks eval_tasks_steps eval_tasks_data eval_tasks_limit eval_tasks_batch_size"
)
NO_EFFECT = frozenset(_NO_EFFECT.split())
# Settings on which it depends which weights train, and in which groups the optimizer holds them.
_WHAT_TRAINS = (
    "freeze_backbone tune_mm_mlp_adapter unfreeze_mm_vision_tower mm_projector_type freeze_mm_mlp_adapter "
    "lora_enable lora_r lora_bias mm_projector_lr mm_vision_tower_lr"
)
WHAT_TRAINS = frozenset(_WHAT_TRAINS.split())


# ---- making ----


def make_manifest(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    *,
    template: str = "",
) -> dict[str, Any]:
    """Describe a run that is about to start; takes well under a second.

    template: the digest of a chat template that is the tokenizer's.
    """
    return {
        "command": shlex.join([sys.executable, *sys.argv]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "working_directory": os.getcwd(),
        "world_size": training_args.world_size,
        "sharding": sharding(training_args),
        "seed": training_args.seed,
        "deterministic": training_args.deterministic,
        "versions": versions(),
        "git": git_revision(Path(__file__).parent),
        "data": {"path": data_args.data_path, "fingerprint": _data_fingerprint(data_args)},
        "model": {
            "path": model_args.model_name_or_path,
            "fingerprint": fingerprint(_model_files(model_args.model_name_or_path)),
        },
        **({"template": template} if template else {}),
        "settings": {
            "model": _settings(model_args),
            "data": _settings(data_args),
            "training": _plain(training_args.to_dict()),
        },
    }


def sharding(training_args: TrainingArguments) -> str:
    """Name the way in which states are sharded over the processes, as their files differ."""
    config = adapted(RunPlan, training_args).hf_deepspeed_config
    if config is not None:
        return f"ZeRO-{int(config.get_value('zero_optimization.stage', 0))}"
    return "FSDP" if training_args.fsdp else "none"


def versions() -> dict[str, str]:
    """Return the versions of Python, llava and the packages that training uses, as far as installed."""
    found = {"python": platform.python_version()}
    for name in ("llava", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Return revision and whether files differ from it; None outside of a git repository."""

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no", ".")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _data_fingerprint(data_args: DataArguments) -> str | None:
    """Return a hash of the files behind --data_path; of a stream's shards, as far as they lie here."""
    name = data_args.data_path
    try:
        if not data_args.streaming:
            return fingerprint(_data_files(name))
        shards = [Path(one) for one in find_shards(name or "") if os.path.isfile(one)]
    except UserError:  # gone since they were opened
        return None
    return fingerprint(shards, parts=max(2, min(PARTS, STREAM_PARTS // max(1, len(shards)))))


def _data_files(data_path: str | None) -> Iterator[Path]:
    """Yield the files behind --data_path; those that a .yaml mixture names are part of it."""
    if not data_path:
        return
    sources = find_sources(data_path, None)
    if os.path.isfile(data_path) and Path(data_path).suffix.lower() in MIXTURES:
        yield Path(data_path)
    for source in sources:
        yield from source.files


def _model_files(name: str) -> Iterator[Path]:
    folder = Path(name)
    patterns = (CONFIG_FILE, *WEIGHT_FILES, *WEIGHT_INDEXES, "model-*.safetensors", "pytorch_model-*.bin")
    if folder.is_dir():
        yield from (file for pattern in patterns for file in sorted(folder.glob(pattern)))


def _settings(arguments: ModelArguments | DataArguments) -> dict[str, Any]:
    names = {one.name for one in fields(arguments) if one.init}
    return _plain({name: value for name, value in asdict(arguments).items() if name in names})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring values to what JSON has."""
    return json.loads(json.dumps(values, default=str))


# ---- keeping ----


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Write a manifest into a folder; it is whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MANIFEST_FILE, json.dumps(manifest, indent=1, ensure_ascii=False))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a run or checkpoint; None if it has none that can be read."""
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List what differs between two runs and can change the result, each as "NAME was X, is Y"."""
    found = []
    for group in ("model", "data", "training"):
        old, new = before.get("settings", {}).get(group, {}), now["settings"][group]
        for name in new:
            if name not in NO_EFFECT and name in old and old[name] != new[name]:
                found.append(f"--{name} was {_show(old[name])}, is {_show(new[name])}")
    if before.get("world_size") != now["world_size"]:
        found.append(f"number of processes was {before.get('world_size')}, is {now['world_size']}")
    for part in ("data", "model"):
        old, new = before.get(part, {}), now[part]
        if old.get("path") == new["path"] and old.get("fingerprint") != new["fingerprint"]:
            found.append(f"the content of {new['path']} is not what it was")
    if before.get("template", now.get("template")) != now.get("template"):
        found.append(f"the chat template of {now['model']['path']} is not what it was")
    for name, version in now["versions"].items():
        was = before.get("versions", {}).get(name)
        if was is not None and was != version:
            found.append(f"{name} was {was}, is {version}")
    return found


def whose_weights(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> str:
    """Say which weights a run uses that resumes with another model than before; "" for the same one."""
    old, new = before.get("model", {}).get("path"), now["model"]["path"]
    if old is None or old == new:
        return ""
    settings = {**now["settings"]["model"], **now["settings"]["training"]}
    parts = ""
    if settings.get("lora_enable"):
        parts = "adapters and projector are those"
    elif settings.get("tune_mm_mlp_adapter") and not settings.get("unfreeze_mm_vision_tower"):
        parts = "the projector is that"
    if parts:
        return f"{parts} of {checkpoint}, trained with {old}; the LLM is that of {new}"
    return (
        f"all weights are those of {checkpoint}, none of {new} is used; to start from it choose another "
        "--output_dir, or start over with --resume never"
    )


def other_shards(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say why the states of an earlier run cannot be sharded over the processes of now; "" if they can."""
    old, new = before.get("sharding"), now["sharding"]
    if old is not None and old != new:
        return f"its sharding was {old}, is {new}"
    if new.startswith("ZeRO") and before.get("world_size") != now["world_size"]:
        return (
            f"DeepSpeed wrote it in {before.get('world_size')} processes and resumes in equally many only, "
            f"these are {now['world_size']}"
        )
    return ""


def other_weights(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the changed settings with which other weights train than before, each as "NAME was X, is Y".

    Flags that --mm_tunable_parts has set are told under its name.
    """
    parts = [run.get("settings", {}).get("model", {}).get("mm_tunable_parts") for run in (before, now)]
    found: list[str] = []
    for group in ("model", "training"):
        old, new = before.get("settings", {}).get(group, {}), now["settings"][group]
        for name in sorted(WHAT_TRAINS & new.keys() & old.keys()):
            values = old[name], new[name]
            if name.endswith("_lr"):  # it matters only whether there is one
                values = old[name] is None, new[name] is None
            if values[0] == values[1]:
                continue
            if name in OTHER_FLAGS and parts[0] != parts[1]:
                told = f"--mm_tunable_parts was {_show(parts[0])}, is {_show(parts[1])}"
                found += [told] if told not in found else []
            else:
                found.append(f"--{name} was {_show(old[name])}, is {_show(new[name])}")
    return found


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
