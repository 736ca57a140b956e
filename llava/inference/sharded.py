"""A batch over several processes (`accelerate launch`, `torchrun`): each answers its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.inference.batch import DEFAULT_BATCH_SIZE, Answer, Dialog, generate_batch, prompt_lengths
from llava.inference.model_inputs import device_of
from llava.inference.sampling import SamplingParams


def generate_sharded(
    tokenizer: Any,
    model: Any,
    image_processor: Any,
    dialogs: Sequence[Dialog],
    params: SamplingParams | None = None,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> list[Answer]:
    """Return the answer to each dialog, in their order, on every process.

    Each process calls this with the same dialogs and a model of its own. Shares are dealt out by length, so
    that all have as much to do. Alone, a process answers everything. Raises what generate_batch raises, on
    all processes alike for a dialog that cannot be asked.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    # accelerate has to be told of a model on the CPU, else it looks for GPUs alone
    state = PartialState(cpu=device_of(model).type == "cpu")
    lengths = prompt_lengths(tokenizer, model, image_processor, dialogs, params)
    by_length = sorted(range(len(dialogs)), key=lambda index: -lengths[index])
    own = by_length[state.process_index :: state.num_processes]
    answers = generate_batch(
        tokenizer, model, image_processor, [dialogs[index] for index in own], params, batch_size=batch_size
    )
    everything = dict(gather_object(list(zip(own, answers, strict=True))))
    return [everything[index] for index in range(len(dialogs))]
