"""Every private name of a dependency that llava uses, each behind a function with its reason.

tests/test_compat.py looks all of them up, at both ends of the supported range, so that a release which drops
or renames one is noticed there and not by a user. None has a silent fallback. This module imports nothing
heavy: torch and transformers come with the objects that are passed in, or when a function needs them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
    from transformers.tokenization_python import Trie

__all__ = ["FakeTensor", "FakeTensorMode", "TorchDispatchMode"]

# Classes of torch without a public home, loaded when they are asked for: tensors that have shapes but no
# values, and a hook that sees each operation, which the memory estimate of --dry_run is made of.
_TORCH_CLASSES = {
    "FakeTensor": "torch._subclasses.fake_tensor",
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    "TorchDispatchMode": "torch.utils._python_dispatch",
}

# Private methods and attributes of dependencies that classes of llava define, because the dependency calls
# or reads them: class, names. Such a definition is an override; its `super()._name(...)` is part of it.
OVERRIDDEN = {
    # where checkpoints are written, what of them, and how they are read back; the order of samples
    "transformers.Trainer": (
        "_get_output_dir",
        "_get_train_sampler",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
        "_save",
        "_save_checkpoint",
    ),
    # ids to text as sentencepiece gives it, added tokens apart
    "transformers.tokenization_utils_sentencepiece.SentencePieceBackend": ("_decode",),
}


def __getattr__(name: str) -> Any:
    if name in _TORCH_CLASSES:
        return getattr(importlib.import_module(_TORCH_CLASSES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---- transformers: models and configs ----


def attention_of(config: PretrainedConfig) -> str | None:
    """Return the attention that a config has chosen; it has no public reader."""
    return config._attn_implementation


def set_attention(config: PretrainedConfig, name: str) -> None:
    """Choose an attention registered with transformers.

    The public `set_attn_implementation` belongs to a model and loads kernels by that name.
    """
    config._attn_implementation = name


def supported_attention(model_class: type[PreTrainedModel]) -> tuple[str, ...]:
    """Return with which words the kernels begin that a model's class has; asking for another is an error.

    The public way is to build the model and catch what it raises.
    """
    flags = {
        "sdpa": model_class._supports_sdpa,
        "flash_attention": model_class._supports_flash_attn,
        "flex_attention": model_class._supports_flex_attn,
    }
    return tuple(name for name, offered in flags.items() if offered)


def can_compile_fullgraph(model: PreTrainedModel) -> bool:
    """Tell whether a model's attention works with a cache of fixed size, compiled as one graph."""
    return model._can_compile_fullgraph


def no_split_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the classes that a device map and FSDP keep whole."""
    return list(model._no_split_modules or ())


def set_no_split_modules(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Choose the classes that a device map and FSDP keep whole; accelerate reads them from the model."""
    model._no_split_modules = list(names)


@contextmanager
def engines_of_deepspeed_if_imported() -> Iterator[None]:
    """Let accelerate look for DeepSpeed's engine only in a process that has imported DeepSpeed.

    Its `extract_model_from_parallel`, which every save calls, imports DeepSpeed to ask whether the model is
    an engine. Where nobody has imported the class no model is of it, so the answer is the same.
    """
    from accelerate.utils import other

    installed = other.is_deepspeed_available
    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules and installed()
    try:
        yield
    finally:
        other.is_deepspeed_available = installed


class _OnDemand(dict[str, Any]):
    """A dict that asks `make` for what it lacks."""

    def __init__(self, known: Mapping[str, Any], make: Callable[[str], Any]) -> None:
        super().__init__(known)
        self._make = make

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and self._make(key) is not None)

    def __missing__(self, key: str) -> Any:
        if (made := self._make(key)) is None:
            raise KeyError(key)
        return made


def make_configs_on_demand(mapping: object, make: Callable[[str], type[PretrainedConfig] | None]) -> None:
    """Let AutoConfig's mapping ask `make` for the class of a model type that nobody has registered.

    The public `AutoConfig.register` wants the class itself: that of every LLM, at the time of import.
    """
    vars(mapping)["_extra_content"] = _OnDemand(vars(mapping)["_extra_content"], make)


def cached_hub_file(repository: str, name: str, **hub: object) -> str | None:
    """Return the local path of a file of a hub repository, None if the repository lacks it.

    The public way to ask for an optional file is to catch the error for a missing one, which is the same as
    that for a missing repository. Raises OSError or ValueError when the hub cannot be asked.
    """
    from transformers.utils import cached_file

    return cached_file(repository, name, _raise_exceptions_for_missing_entries=False, **hub)


# ---- transformers: tokenizers ----


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """Return the ids of added tokens; the public property builds a sorted copy at each call."""
    return tokenizer._added_tokens_encoder


def trie_tokens(trie: Trie) -> set[str]:
    """Return the tokens that a tokenizer's trie holds, to build another kind of splitter from them."""
    return trie._tokens


# ---- transformers: the Trainer ----


def prepared_inputs(trainer: Trainer, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a batch to the trainer's device and dtype, as its own evaluation does."""
    return trainer._prepare_inputs(inputs)


def train_batch_size(trainer: Trainer) -> int:
    """Return the samples of a micro-batch of one process, which --auto_find_batch_size may have lowered."""
    return trainer._train_batch_size


def unlogged_loss(trainer: Trainer) -> tuple[float, int]:
    """Return the sum of the losses since the last log entry, and the step of that entry.

    Checkpoints of transformers lack both, so that the first entry after resuming would be wrong.
    """
    return float(trainer._tr_loss), trainer._globalstep_last_logged


def set_unlogged_loss(trainer: Trainer, added: float, step: int) -> None:
    """Add losses that were not logged yet, and set the step of the last log entry."""
    trainer._tr_loss += added
    trainer._globalstep_last_logged = step


# ---- torch ----


def set_last_rates(scheduler: torch.optim.lr_scheduler.LRScheduler, rates: Sequence[float]) -> None:
    """Set what `scheduler.get_last_lr()` gives, which logs show until the next step."""
    scheduler._last_lr = list(rates)


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to; tensors of inference mode do not count, they give 0.

    It has no public reader, and reading a model in whole to see a change would cost as much as asking it.
    """
    return 0 if tensor.is_inference() else tensor._version


def storage_key(tensor: torch.Tensor) -> int:
    """Return a number that the memory of a tensor has, whether or not it has values.

    `data_ptr` is 0 for all tensors without values.
    """
    return tensor.untyped_storage()._cdata


def tables_of(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the dicts in which a module keeps its weights and its buffers.

    `setattr` refuses to put a tensor that is no Parameter in the place of one, and would check each.
    """
    yield module._parameters
    yield module._buffers


def forward_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Return what is called behind a module's forward; transformers records hidden states in this way."""
    return list(module._forward_hooks.values())


def set_children(module: nn.Module, children: Mapping[str, nn.Module | None]) -> None:
    """Give a module other children at once, in a dict of their own.

    `add_module` changes the dict, which ends every walk over the modules that is under way.
    """
    module._modules = dict(children)


# ---- accelerate ----


class Hook(Protocol):
    """What accelerate hangs on a module that it moves inputs or weights for."""

    execution_device: int | str | torch.device | None


def hook_of(module: nn.Module) -> Hook | None:
    """Return the hook that accelerate has hung on a module, None if there is none.

    Only modules with a hook have the attribute; accelerate tells them apart in this way itself.
    """
    return getattr(module, "_hf_hook", None)


# ---- Python ----


def parser_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments that a parser knows, for the closest names to an unknown one."""
    return parser._actions


def semaphore_value(semaphore: asyncio.Semaphore) -> int:
    """Return how many more may enter a semaphore; the reference prints it."""
    return semaphore._value
