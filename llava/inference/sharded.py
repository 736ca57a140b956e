"""A batch over several processes (`accelerate launch`, `torchrun`): each answers its share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from llava.inference.batch import (
    DEFAULT_BATCH_SIZE,
    Answer,
    Question,
    Reader,
    answer_all,
    answer_prompts,
    arguments_of,
    check_batch_size,
    read_all,
    same,
)
from llava.inference.dialog import Prompt
from llava.inference.sampling import SamplingParams
from llava.utils import UserError

Result = TypeVar("Result")


def generate_sharded(
    *given: Any, params: SamplingParams | None = None, batch_size: int = DEFAULT_BATCH_SIZE
) -> list[Answer]:
    """Return the answer to each dialog, in their order, on every process; call forms as of generate_batch.

    Each process calls this with the same dialogs and a model of its own. Dialogs are sharded by their number:
    process r of n answers r, r + n, ... and opens the images of these alone. Alone, a process answers
    everything. Raises what generate_batch raises, on all processes alike.
    """
    loaded, dialogs, settings = arguments_of(given, params)
    return answer_sharded(Reader(loaded, settings, same), dialogs, batch_size=batch_size)


def answer_sharded(
    reader: Reader[Question], questions: Iterable[Question], *, batch_size: int = DEFAULT_BATCH_SIZE
) -> list[Answer]:
    """Return the answers to all questions on every process; see generate_sharded."""
    from accelerate import PartialState

    check_batch_size(batch_size)
    # accelerate has to be told of a model on the CPU, else it looks for GPUs alone
    state = PartialState(cpu=reader.loaded.device.type == "cpu")
    rank, n_processes = state.process_index, state.num_processes
    if isinstance(questions, Sequence):  # all of it is read before anything runs, on every process
        prompts: dict[int, Prompt] = {}
        _together(lambda: prompts.update(read_all(reader, questions, start=rank, step=n_processes)))
        shares = _together(lambda: dict(answer_prompts(reader, prompts, batch_size)))
    else:
        shares = _together(
            lambda: answer_all(reader, questions, batch_size=batch_size, start=rank, step=n_processes)
        )
    found = {index: answer for share in shares for index, answer in share.items()}
    return [found[index] for index in range(len(found))]


def _together(work: Callable[[], Result]) -> list[Result]:
    """Do the work on every process and return what each has got; a UserError of one is raised on all."""
    from accelerate.utils import gather_object

    error, result = None, None
    try:
        result = work()
    except UserError as caught:
        error = str(caught)
    everything = gather_object([(error, result)])
    for error, _ in everything:
        if error is not None:
            raise UserError(error)
    return [result for _, result in everything]
