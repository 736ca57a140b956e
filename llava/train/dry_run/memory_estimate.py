"""How much memory a training step will take, found by going through one without computing anything."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava._compat import FakeTensor, FakeTensorMode, TorchDispatchMode, storage_key, tables_of
from llava.train.plan import RunPlan, word_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes that an optimizer keeps for each value it trains, by the beginning of --optim; else two float32.
STATE_BYTES = (
    ("sgd", 0),
    ("adafactor", 0),  # a row and a column of each matrix
    ("adamw_bnb_8bit", 2),
    ("adamw_8bit", 2),
    ("paged_adamw_8bit", 2),
    ("lion_8bit", 1),
    ("paged_lion_8bit", 1),
    ("lion", 4),
)
ADAM_BYTES = 8
MASTER_BYTES = 4  # DeepSpeed's float32 copy of a weight in half precision


class StorageMeter(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active and still alive; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it makes."""
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [place for one in args[1] for place in _places(one)], *args[2:])
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if torch.is_tensor(one):
                self._add(one)
        return result

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave a tensor's memory out for good, as that of a weight."""
        self._seen[storage_key(tensor)] = tensor

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage_key(tensor), storage.nbytes()
        if key not in self._seen:
            self._seen[key] = weakref.finalize(storage, self._free, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.now -= size


def _places(index: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
    """Write a mask with values as places, whose number is then known; other indices stay as they are."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return [index]
    return index.nonzero(as_tuple=True)


@contextlib.contextmanager
def _shapes_only(model: nn.Module, meter: StorageMeter) -> Iterator[FakeTensorMode]:
    """Put tensors without values in the place of a model's weights and buffers for a while.

    Such tensors take no memory and no time, but every operation on them gives shapes, dtypes and devices.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, torch.Tensor] = {}
    before: list[tuple[Any, str, Any]] = []
    quantised = [
        one
        for one in model.modules()
        if isinstance(one, nn.Linear) and type(one).__module__.startswith("bitsandbytes")
    ]

    def stand_in(real: torch.Tensor) -> torch.Tensor:
        if id(real) not in made:
            with mode:  # ZeRO-3 keeps only a part of a weight, and its whole shape beside it
                fake = torch.empty(
                    getattr(real, "ds_shape", real.shape), dtype=real.dtype, device=real.device
                )
            is_weight = isinstance(real, nn.Parameter)
            made[id(real)] = fake = nn.Parameter(fake, real.requires_grad) if is_weight else fake
            meter.ignore(fake)
        return made[id(real)]

    try:
        for linear in quantised:
            linear.forward = functools.partial(_quantised_forward, linear, mode)  # type: ignore[method-assign]
        for module in model.modules():
            for values in tables_of(module):
                for name, real in list(values.items()):
                    if real is not None:
                        before.append((values, name, real))
                        values[name] = stand_in(real)
        yield mode
    finally:
        for values, name, real in before:
            values[name] = real
        for linear in quantised:
            del linear.forward


class _WithUnpackedWeight(torch.autograd.Function):
    """The product with a quantised weight, which lies there in full precision only while it is used."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, linear: nn.Linear, mode: FakeTensorMode) -> torch.Tensor:
        """values: (..., in). Returns (..., out)."""
        ctx.linear, ctx.mode = linear, mode
        return values @ _unpacked(linear, mode, values).T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        """Return the gradient of `values`; the weight has none."""
        return gradient @ _unpacked(ctx.linear, ctx.mode, gradient), None, None


def _unpacked(linear: nn.Linear, mode: FakeTensorMode, like: torch.Tensor) -> torch.Tensor:
    with mode:
        return torch.empty(linear.out_features, linear.in_features, dtype=like.dtype, device=like.device)


def _quantised_forward(linear: nn.Linear, mode: FakeTensorMode, values: torch.Tensor) -> torch.Tensor:
    """Stand in for a layer of bitsandbytes, whose operations need values."""
    dtype = getattr(linear, "compute_dtype", None) or values.dtype
    result = _WithUnpackedWeight.apply(values.to(dtype), linear, mode).to(values.dtype)
    return result if linear.bias is None else result + linear.bias.to(values.dtype)


def measure_step(model: nn.Module, batch: dict[str, Any], plan: RunPlan) -> int:
    """Return the peak bytes that a forward and backward pass holds beside the weights, gradients included.

    batch: what the collator makes, with values in its ids and labels.
    """
    meter = StorageMeter()
    device, dtype = plan.device, plan.compute_dtype
    rounds = 2 if plan.gradient_accumulation_steps > 1 else 1
    was_training = model.training
    model.train()
    try:
        with _shapes_only(model, meter) as mode:
            inputs = {name: _stand_in_pixels(value, mode, device) for name, value in batch.items()}
            with meter, torch.enable_grad():
                for _ in range(rounds):  # from the second on the gradients of the first lie there
                    half = dtype != torch.float32 and not plan.deepspeed
                    with torch.autocast(device.type, dtype=dtype, enabled=half):
                        loss = model(**inputs, use_cache=False).loss
                    loss.backward()
                    del loss
    finally:
        model.train(was_training)
    return meter.peak


def _stand_in_pixels(value: object, mode: FakeTensorMode, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_stand_in_pixels(one, mode, device) for one in value]
    if torch.is_tensor(value) and value.is_floating_point():
        with mode:
            return torch.empty(value.shape, dtype=value.dtype, device=device)
    return value.to(device) if torch.is_tensor(value) else value


def image_lengths(model: PreTrainedModel, batch: dict[str, Any], plan: RunPlan) -> list[int]:
    """Return how many tokens each image of a batch becomes."""
    with _shapes_only(model, StorageMeter()) as mode, torch.no_grad():
        images = _stand_in_pixels(batch["images"], mode, plan.device)
        known = {"modalities": batch["modalities"]} if "modalities" in batch else {}
        return [len(one) for one in model.image_features(images, batch.get("image_sizes"), **known)]


# ---- all of it ----


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by what holds them.

    step: most that a forward and backward pass holds beside weights and optimizer, gradients included.
    update: most that the optimizer holds while it changes the weights, gradients included.
    """

    weights: int
    optimizer: int
    gradients: int
    step: int
    update: int

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment."""
        return self.weights + self.optimizer + max(self.step, self.update)


def estimate_memory(
    model: nn.Module, batch: dict[str, Any], plan: RunPlan, *, stage: int = 0, offload: bool = False
) -> MemoryEstimate:
    """Estimate the peak of training `model` with batches like `batch`, for one device.

    stage: of ZeRO, which shards optimizer (1), gradients (2) and weights (3) over the ranks; offload: its
    optimizer lives in the computer's memory. Not counted: what CUDA and NCCL hold for themselves (0.5 to 2
    GB), and gaps between the blocks of the allocator.
    """
    ranks = max(int(plan.world_size), 1)
    params = list(model.parameters())
    trained = [param for param in params if param.requires_grad]
    gradients = sum(map(_size, trained))
    copies = gradients if ranks > 1 and not stage else 0  # the buckets of DistributedDataParallel
    own_gradients = gradients // ranks if stage >= 2 else gradients
    optimizer = sum(_state_bytes(param, plan) for param in trained)
    optimizer = 0 if offload else optimizer // (ranks if stage else 1)
    weights = sum(map(_size, [*params, *model.buffers()]))
    return MemoryEstimate(
        weights=weights // ranks if stage == 3 else weights,
        optimizer=optimizer,
        gradients=own_gradients,
        step=measure_step(model, batch, plan) - gradients + own_gradients + copies,
        update=own_gradients + copies + (0 if stage else _update_bytes(trained, plan.device)),
    )


def _size(tensor: torch.Tensor) -> int:
    return int(getattr(tensor, "ds_numel", tensor.numel())) * tensor.element_size() + _scale_bytes(tensor)


def _scale_bytes(tensor: torch.Tensor) -> int:
    """Return what the scales of a quantised weight take."""
    state, size = getattr(tensor, "quant_state", None), 0
    while state is not None:
        size += state.absmax.numel() * state.absmax.element_size()
        state = getattr(state, "state2", None)
    return size


def _state_bytes(param: torch.Tensor, plan: RunPlan) -> int:
    """Return what the optimizer keeps for a parameter."""
    name = word_of(plan.optim)
    each = next((size for start, size in STATE_BYTES if name.startswith(start)), ADAM_BYTES)
    master = MASTER_BYTES if plan.deepspeed and param.element_size() < 4 else 0
    return _size(param) // param.element_size() * (each + master)


def _update_bytes(trained: Sequence[torch.Tensor], device: torch.device) -> int:
    """Return what AdamW holds for a moment: on a CPU for one weight at a time, else for all of them."""
    sizes = [_size(param) for param in trained]
    return max(sizes, default=0) if device.type == "cpu" else sum(sizes)
