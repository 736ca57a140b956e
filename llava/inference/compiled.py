"""Decoding with torch.compile: a KV cache of fixed size, and a compiled forward pass for one token."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache
from transformers.cache_utils import StaticLayer

from llava._compat import can_compile_fullgraph, hook_of
from llava.inference.decoder import Decoder
from llava.inference.model_inputs import context_of
from llava.protocols import ImageProcessor
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Positions of the first cache, and those that are free in it after the first prompt. A cache that is too
# small is replaced by one of twice the size, for which the step is compiled once more.
SMALLEST_CACHE = 2048
FREE_POSITIONS = 512


class CompiledDecoder(Decoder):
    """A decoder whose one-token steps run compiled; prompts run as they are, into the same cache.

    The first step compiles, which takes from seconds to minutes. All answers of a model should share one such
    decoder: it keeps its cache, whose address is compiled in; see CompiledStep for threads, backend and what
    it refuses.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: ImageProcessor | None = None,
        *,
        backend: str | None = "inductor",
        smallest_cache: int = SMALLEST_CACHE,
    ) -> None:
        self.compiled = CompiledStep(model, backend=backend, smallest_cache=smallest_cache)
        super().__init__(model, image_processor)

    def _run(self, inputs: dict[str, torch.Tensor], cache: Cache, start: int) -> tuple[torch.Tensor, Any]:
        """Run the model behind `start` cached positions; return the last logits (1, vocab) and the cache."""
        return self.compiled.run(inputs, start)

    def _crop(self, n_positions: int) -> None:
        """Do nothing: `_run` sets how much of the cache counts."""


class CompiledStep:
    """A KV cache of fixed size for one dialog, and the compiled forward pass of one token on top of it.

    On CUDA the steps are recorded as CUDA graphs, which belong to a thread: run it in one thread only.
    backend: torch.compile's; None leaves the step uncompiled. smallest_cache: positions of the first cache,
    no more than the model has. Raises UserError for a model or device that this does not work on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        backend: str | None = "inductor",
        smallest_cache: int = SMALLEST_CACHE,
    ) -> None:
        check_compilable(model)
        self.model = model
        self.smallest_cache = smallest_cache
        self.size = 0  # positions of the cache, 0 before the first run
        self._static: Cache | None = None
        self._kind: tuple[torch.dtype, torch.device] | None = None  # of the model when it was made
        self._position: int | None = None  # how many positions the layers count; None: not known
        self._compiled = False
        self._step = _one_token if backend is None else self._compile(backend)

    def _compile(self, backend: str) -> Any:
        uses_graphs = backend == "inductor" and self.model.device.type == "cuda"
        mode = "reduce-overhead" if uses_graphs else None
        return torch.compile(_one_token, backend=backend, mode=mode, dynamic=False)

    def run(self, inputs: dict[str, torch.Tensor], start: int) -> tuple[torch.Tensor, Cache]:
        """Run the model behind `start` cached positions; return the last logits (1, vocab) and the cache.

        inputs: input_ids (1, n) or inputs_embeds (1, n, C). A cache that is too small grows.
        """
        n_new = next(iter(inputs.values())).shape[1]
        # tensors of the cache live on between runs: they must not be made in inference mode
        with torch.inference_mode(False), torch.no_grad():
            static = self._room_for(start, n_new)
            if self._position != start:
                for layer in static.layers:
                    layer.cumulative_length.fill_(start)  # later entries are masked, then overwritten
            self._position = None
            if n_new == 1 and start > 0 and "input_ids" in inputs:
                logits = self._one_step(inputs["input_ids"], static)
            else:
                logits = _last_logits(self.model, static, inputs)
            self._position = start + n_new
        return logits, static

    def fill(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Cache:
        """Take keys and values (1, heads, n, head size) of each layer as the first n positions."""
        n_positions = parts[0][0].shape[2]
        with torch.inference_mode(False), torch.no_grad():
            static = self._room_for(0, n_positions)
            self._position = None
            for layer, (keys, values) in zip(static.layers, parts, strict=True):
                if not layer.is_initialized:
                    layer.lazy_initialization(keys, values)
                layer.keys[:, :, :n_positions] = keys
                layer.values[:, :, :n_positions] = values
        return static

    def _one_step(self, ids: torch.Tensor, static: Cache) -> torch.Tensor:
        """Run the compiled step on one id (1, 1)."""
        begin = time.monotonic()
        try:
            torch.compiler.cudagraph_mark_step_begin()
            # a CUDA graph writes its next result to the same place
            logits = self._step(self.model, ids, static).clone()
        except Exception as error:
            if self._compiled or isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"torch.compile does not work here ({' '.join(str(error).split())[:200]}); it needs a C++ "
                f"compiler, on CUDA also triton. Omit compile to run without it."
            ) from error
        if not self._compiled and self._step is not _one_token:
            logger.info("compiled the decoding step in %.0f s", time.monotonic() - begin)
        self._compiled = True
        return logits

    def _room_for(self, start: int, n_new: int) -> Cache:
        """Return the cache, grown if it is too small; what it holds up to `start` is kept."""
        kind = (self.model.dtype, self.model.device)
        if kind != self._kind:  # the model was moved or cast
            self._static, self._kind = None, kind
            self._compiled = False
        if self._static is not None and start + n_new <= self.size:
            return self._static
        size = self.smallest_cache
        while size < start + n_new + FREE_POSITIONS:
            size *= 2
        size = max(min(size, context_of(self.model)), start + n_new)
        layers = [StaticLayer(max_cache_len=size) for _ in range(self.model.config.num_hidden_layers)]
        if self._static is not None:
            for old, new in zip(self._static.layers, layers, strict=True):
                new.lazy_initialization(old.keys, old.values)
                new.keys[:, :, :start] = old.keys[:, :, :start]
                new.values[:, :, :start] = old.values[:, :, :start]
            self._compiled = False
        self._static, self.size, self._position = Cache(layers=layers), size, None
        return self._static


def _one_token(model: PreTrainedModel, ids: torch.Tensor, static: Cache) -> torch.Tensor:
    return _last_logits(model, static, {"input_ids": ids})


def _last_logits(model: PreTrainedModel, static: Cache, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run the model on top of a cache; return the last logits (1, vocab)."""
    return model(**inputs, past_key_values=static, use_cache=True, logits_to_keep=1).logits[:, -1]


def check_compilable(model: PreTrainedModel) -> None:
    """Raise UserError for a model that cannot decode compiled, with what to do instead."""
    check_compile_device(model.device.type)
    reason = None
    if not can_compile_fullgraph(model):
        reason = f"{model.config.model_type} cannot be compiled: its attention takes no cache of fixed size"
    elif hook_of(model) is not None:
        reason = "a model that is spread over several devices cannot be compiled"
    if reason:
        raise UserError(f"{reason}; omit compile")


def check_compile_device(device: str) -> None:
    """Raise UserError for a device that compiled decoding is not made for."""
    if device.partition(":")[0] not in ("cuda", "cpu"):
        raise UserError(f"compile is for CUDA (and works on CPUs); on {device} omit it")
