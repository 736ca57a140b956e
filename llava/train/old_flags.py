"""Flags of transformers 4.37 that version 5 no longer has: each is taken, with what replaces it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.utils import UserError

logger = logging.getLogger(__name__)

TRUE = ("true", "1", "yes", "y", "t")
FALSE = ("false", "0", "no", "n", "f")
NO_EFFECT = ("", "auto", "none", "-1", "0", *FALSE)  # values with which an old flag asked for nothing

# Part of a new command line: a flag to its value. `--fsdp_config` and `--accelerator_config` hold JSON.
NewFlags = dict[str, str]


@dataclass(frozen=True)
class OldFlag:
    """A dropped flag: a note for the user, and the flags of today that do the same, if there are any.

    field: it is still a field of llava's TrainingArguments, which translates it.
    """

    note: str
    translate: Callable[[str], NewFlags] | None = None
    field: bool = False


def _renamed(name: str) -> OldFlag:
    return OldFlag(f"it is called --{name} today", lambda value: {name: value})


def _when_true(**flags: str) -> Callable[[str], NewFlags]:
    return lambda value: dict(flags) if value.lower() in TRUE else {}


def _in_json(flag: str, key: str, **more: object) -> Callable[[str], NewFlags]:
    """Translate to an entry of a flag that holds JSON."""

    def translate(value: str) -> NewFlags:
        if value.lower() in ("", "none", "0"):
            return {}
        known: object = value
        if value.lower() in TRUE + FALSE:
            known = value.lower() in TRUE
        elif value.isdigit():
            known = int(value)
        return {flag: json.dumps({key: known, **more})}

    return translate


_AUTOCAST = OldFlag("has no effect: --bf16 and --fp16 use torch's own autocast, the only backend there is")
_TPU = OldFlag("has no effect: the launcher of the TPU tells the number of cores")
_NO_PLACE = "has no effect in transformers 5"

# Every field of TrainingArguments of transformers 4.37 (and a little before) that transformers 5 dropped.
OLD_FLAGS: dict[str, OldFlag] = {
    "evaluation_strategy": OldFlag("it is called --eval_strategy today", field=True),
    "warmup_ratio": OldFlag("--warmup_steps takes a part of all steps (below 1) as well", field=True),
    "group_by_length": OldFlag("--train_sampling_strategy group_by_length does the same", field=True),
    "save_safetensors": OldFlag("weights are always written as safetensors", field=True),
    "overwrite_output_dir": OldFlag("--resume never starts over", field=True),
    "no_cuda": OldFlag("it is called --use_cpu today", field=True),
    "logging_dir": OldFlag("the variable TENSORBOARD_LOGGING_DIR names the folder", field=True),
    "per_gpu_train_batch_size": _renamed("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _renamed("per_device_eval_batch_size"),
    "push_to_hub_model_id": _renamed("hub_model_id"),
    "push_to_hub_token": _renamed("hub_token"),
    "push_to_hub_organization": OldFlag(
        "has no effect: name the organization in --hub_model_id organization/name"
    ),
    "adafactor": OldFlag("--optim adafactor does the same", _when_true(optim="adafactor")),
    "dispatch_batches": OldFlag(
        "--accelerator_config '{\"dispatch_batches\": true}' does the same",
        _in_json("accelerator_config", "dispatch_batches"),
    ),
    "split_batches": OldFlag(
        "--accelerator_config '{\"split_batches\": true}' does the same",
        _in_json("accelerator_config", "split_batches"),
    ),
    "fsdp_transformer_layer_cls_to_wrap": OldFlag(
        '--fsdp_config \'{"transformer_layer_cls_to_wrap": "NAME"}\' does the same',
        _in_json("fsdp_config", "transformer_layer_cls_to_wrap"),
    ),
    "fsdp_min_num_params": OldFlag(
        '--fsdp_config \'{"min_num_params": N, "auto_wrap_policy": "SIZE_BASED_WRAP"}\' does the same',
        _in_json("fsdp_config", "min_num_params", auto_wrap_policy="SIZE_BASED_WRAP"),
    ),
    "include_inputs_for_metrics": OldFlag(
        "--include_for_metrics inputs does the same", _when_true(include_for_metrics="inputs")
    ),
    "torchdynamo": OldFlag(
        "--torch_compile True --torch_compile_backend NAME does the same",
        lambda value: {"torch_compile": "True", "torch_compile_backend": value},
    ),
    "half_precision_backend": _AUTOCAST,
    "fp16_backend": _AUTOCAST,
    "fp16_opt_level": OldFlag("has no effect: it was a level of apex, which transformers 5 does not use"),
    "use_mps_device": OldFlag("has no effect: an Apple GPU is used by itself; --use_cpu True avoids it"),
    "jit_mode_eval": OldFlag("has no effect; --torch_compile True is what there is today"),
    "use_ipex": OldFlag("has no effect: torch has the optimizations of that package itself"),
    "xpu_backend": OldFlag("has no effect; --ddp_backend names the backend of every device"),
    "sharded_ddp": OldFlag("has no effect: shard with --deepspeed or --fsdp"),
    "tpu_num_cores": _TPU,
    "tpu_metrics_debug": OldFlag("has no effect; --debug tpu_metrics_debug does the same"),
    "past_index": OldFlag(f"{_NO_PLACE}: it was for models that hand states from batch to batch"),
    "mp_parameters": OldFlag(f"{_NO_PLACE}: it was for SageMaker's model parallelism"),
    "ray_scope": OldFlag(f"{_NO_PLACE}: it was for searches with Ray"),
    "use_legacy_prediction_loop": OldFlag(f"{_NO_PLACE}: there is one loop of evaluation"),
    "include_tokens_per_second": OldFlag(
        "the log has tokens/s in each line; --include_num_input_tokens_seen all adds their number"
    ),
}

# what --help says of them
OLD_FLAGS_HELP = "Flags of transformers 4 are taken as well: " + " ".join(f"--{name}" for name in OLD_FLAGS)


def translate_old_flags(argv: Sequence[str], known: frozenset[str] = frozenset()) -> list[str]:
    """Return a command line in the flags of today, and log a note for each old one that asked for something.

    known: flags that the installed transformers still has; they stay as they are.
    """
    rest: list[str] = []
    new: dict[str, str] = {}
    at = 0
    while at < len(argv):
        name, equals, value = argv[at].partition("=")
        at += 1
        old = OLD_FLAGS.get(name[2:]) if name.startswith("--") else None
        if old is None or old.field or name[2:] in known:
            rest.append(argv[at - 1])
            continue
        if not equals:
            value = "True"
            if at < len(argv) and not argv[at].startswith("--"):
                value, at = argv[at], at + 1
        flags = old.translate(value) if old.translate is not None else {}
        if flags or value.lower() not in NO_EFFECT:
            logger.warning("%s of transformers 4: %s", name, old.note)
        for flag, text in flags.items():
            new[flag] = _merged(flag, new[flag], text) if flag in new else text
    return _appended(rest, new)


def _appended(argv: list[str], new: NewFlags) -> list[str]:
    """Add flags to a command line; of one that is given already, JSON is merged and another value stays."""
    added: list[str] = []
    for flag, text in new.items():
        at = next((i for i, part in enumerate(argv) if part.partition("=")[0] == f"--{flag}"), None)
        if at is None:
            added += [f"--{flag}", text]
        elif text.startswith("{"):
            equals = "=" in argv[at]
            place = at if equals else at + 1
            given = argv[at].partition("=")[2] if equals else argv[place]
            merged = _merged(flag, text, given)
            argv[place] = f"--{flag}={merged}" if equals else merged
    return [*argv, *added]


def _merged(flag: str, weak: str, strong: str) -> str:
    """Merge two JSON objects, or files of them; the second one wins."""
    return json.dumps({**read_json_flag(flag, weak), **read_json_flag(flag, strong)})


def read_json_flag(flag: str, value: str) -> dict[str, object]:
    """Read a flag that holds a JSON object or names a file of one. Raises UserError for anything else."""
    text = value
    if not value.lstrip().startswith("{"):
        path = Path(value).expanduser()
        if not path.is_file():
            raise UserError(f"--{flag} is {value!r}, and there is no such file; expected a JSON file")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--{flag}: {value} cannot be read as text ({error})") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"--{flag}: {value} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"--{flag}: {value} holds no JSON object; expected {{...}}")
    return content
