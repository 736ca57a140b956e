"""Many dialogs at once: those that begin alike share it, longer ones first, images opened in their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from llava.inference.answer import stream_answer
from llava.inference.decoder import Decoder
from llava.inference.dialog import Answer, Dialog, OpenPrompt, Prompt
from llava.inference.engine.kept import Found, Kept
from llava.inference.engine.order import Order
from llava.inference.engine.row import Row, similar
from llava.inference.engine.stepper import Stepper
from llava.inference.model import LoadedModel
from llava.inference.sampling import SamplingParams
from llava.inference.streaming import TextStream
from llava.inference.turns import OnFailure, Turns
from llava.protocols import ImageProcessor
from llava.utils import UserError, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DEFAULT_BATCH_SIZE", "Answer", "Dialog", "generate_batch"]

DEFAULT_BATCH_SIZE = 8
# Of an iterable without a length so many dialogs for each row of the batch are read at a time, to run those
# of similar length together.
READ_AHEAD = 32
# Positions of prompts that are computed at once.
PREFILL_CHUNK = 8192
# What questions leave for those that follow: KV caches of beginnings that they share, and image features.
PREFIX_BYTES = 1792 * 2**20
FEATURE_BYTES = 256 * 2**20
# New prompts join when one row of so many is free.
FREE_SHARE = 4

Question = TypeVar("Question")
OnAnswer = Callable[[int, Answer], object]


@dataclass(frozen=True)
class Reader(Generic[Question]):
    """Turns questions into prompts; UserError names the index of the one that cannot be asked."""

    loaded: LoadedModel
    params: SamplingParams
    as_dialog: Callable[[Question], Dialog]
    word: str = "dialog"

    def read(self, index: int, question: Question) -> Prompt:
        """Return a question as a prompt whose images are not opened."""
        try:
            return self.loaded.read(self.as_dialog(question), self.params.stop)
        except UserError as error:
            raise self._named(index, error) from error

    def open(self, index: int, prompt: Prompt) -> OpenPrompt:
        """Return a prompt with its images opened."""
        try:
            return self.loaded.open(prompt)
        except UserError as error:
            raise self._named(index, error) from error

    def _named(self, index: int, error: UserError) -> UserError:
        return UserError(f"{self.word} {index}: {error}")


@overload
def generate_batch(
    loaded: LoadedModel,
    dialogs: Iterable[Dialog],
    params: SamplingParams | None = None,
    /,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
) -> list[Answer]: ...


@overload
def generate_batch(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    image_processor: ImageProcessor,
    dialogs: Iterable[Dialog],
    params: SamplingParams | None = None,
    /,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
) -> list[Answer]: ...


def generate_batch(
    *given: Any,
    params: SamplingParams | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
) -> list[Answer]:
    """Return the answer to each dialog, in their order.

    `generate_batch(loaded, dialogs, params)`, or with tokenizer, model and image_processor in place of the
    LoadedModel. Dialogs of similar length run together, at most `batch_size` at a time, longer ones first,
    and a new one joins as soon as one is answered; text-only ones, images of any size and several images mix.
    What dialogs begin with alike (the system text, the same images) is computed once and its KV cache copied:
    such caches and image features stay in at most 2 GiB (PREFIX_BYTES + FEATURE_BYTES, what was used longest
    ago goes first), until all dialogs that were read together are answered.
    Images that are given as paths or URLs are opened when their turn comes. A list of dialogs is read at
    once, so that UserError names the first that cannot be asked before anything is generated (for an image
    that turns out to be damaged: in its turn); another iterable is read piece by piece.

    The answers are those that ChatSession gives one by one (the same seed for each), as far as sums in
    another order round alike: token for token for float32 and greedy choice, while in 16 bits near ties may
    fall the other way. With beams, dialogs run one by one. on_answer is called with (index, answer) as
    answers come.
    """
    loaded, dialogs, settings = arguments_of(given, params)
    reader: Reader[Dialog] = Reader(loaded, settings, same)
    found = answer_all(reader, dialogs, batch_size=batch_size, on_answer=on_answer)
    return [found[index] for index in range(len(found))]


def arguments_of(
    given: Sequence[Any], params: SamplingParams | None
) -> tuple[LoadedModel, Iterable[Dialog], SamplingParams]:
    """Return the model, dialogs and settings of either call form of generate_batch."""
    n_model = 1 if isinstance(given[0], tuple) else 3
    if not n_model < len(given) <= n_model + 2 - (params is not None):
        raise TypeError("expected a LoadedModel (or tokenizer, model, image_processor), dialogs, and params")
    dialogs, *rest = given[n_model:]
    return (
        LoadedModel.of(*given[:n_model]),
        dialogs,
        params or (rest[0] if rest else None) or SamplingParams(),
    )


def answer_all(
    reader: Reader[Question],
    questions: Iterable[Question],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_answer: OnAnswer | None = None,
    start: int = 0,
    step: int = 1,
) -> dict[int, Answer]:
    """Return the answers to every `step`-th question from `start` on, by the question's index."""
    check_batch_size(batch_size)
    window = None if isinstance(questions, Sequence) else READ_AHEAD * batch_size
    own = islice(enumerate(questions), start, None, step)
    answers: dict[int, Answer] = {}
    while prompts := {index: reader.read(index, one) for index, one in islice(own, window)}:
        for index, answer in answer_prompts(reader, prompts, batch_size):
            answers[index] = answer
            if on_answer is not None:
                on_answer(index, answer)
    return answers


def check_batch_size(batch_size: object) -> None:
    """Raise UserError for what is no number of rows."""
    check_whole("batch_size", batch_size, 1)


def read_all(
    reader: Reader[Question], questions: Iterable[Question], *, start: int = 0, step: int = 1
) -> dict[int, Prompt]:
    """Read every `step`-th question from `start` on; UserError names the first that cannot be asked."""
    return {index: reader.read(index, one) for index, one in islice(enumerate(questions), start, None, step)}


def same(dialog: Dialog) -> Dialog:
    """Return a dialog as it is; what a Reader of dialogs does with its questions."""
    return dialog


def answer_prompts(
    reader: Reader[Any],
    prompts: Mapping[int, Prompt],
    batch_size: int,
    *,
    ahead: int = 0,
    on_failure: OnFailure | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Yield (index, answer) of prompts as they end; see Order.

    ahead, on_failure: see Turns.
    """
    order = Order(prompts)
    loaded = reader.loaded
    if reader.params.num_beams == 1:
        kept = Kept(PREFIX_BYTES + FEATURE_BYTES)
        stepper = Stepper(loaded, kept, chunk=PREFILL_CHUNK, keep_answers=False)
        room = PREFIX_BYTES // stepper.measure() if order.shares else 0
        places = order.places(at_once=batch_size, room=room)
        with Turns(places, reader.open, ahead=ahead, on_failure=on_failure) as waiting:
            yield from _answer_together(reader, waiting, batch_size, stepper)
        return
    places = order.places(at_once=1)  # the decoder keeps one prompt
    with Turns(places, reader.open, ahead=ahead, on_failure=on_failure) as waiting:
        decoder = loaded.decoder()
        while waiting:
            index = waiting.next.index
            if (prompt := waiting.take()) is not None:
                yield index, _answer_alone(decoder, reader, prompt)


def _answer_together(
    reader: Reader[Any], waiting: Turns, batch_size: int, stepper: Stepper
) -> Iterator[tuple[int, Answer]]:
    """Yield (index, answer) of prompts as they end; new ones join when some rows have become free."""
    stepper.notice_changes()
    indices: dict[Row, int] = {}
    enough = max(1, batch_size // FREE_SHARE)  # a lone prompt uses the machine badly
    while waiting or stepper.n_running:
        free = batch_size - stepper.n_running
        if waiting and not stepper.prefilling and (free >= enough or free >= len(waiting)):
            group: list[tuple[Row, Found]] = []
            lengths: list[int] = []  # of what is computed of each
            wave = waiting.next.wave
            while waiting and len(group) < free and (place := waiting.next).wave == wave:
                if lengths and not similar(lengths, place.n_rest):
                    break
                if (prompt := waiting.take()) is not None:
                    row = Row(reader.loaded, prompt, reader.params, n_keep=place.n_keep)
                    indices[row] = place.index
                    group.append((row, stepper.kept.find(row.keys)))
                    lengths.append(place.n_rest)
            if group:
                stepper.begin(group)
        for row in stepper.step():
            yield indices.pop(row), row.answer()


def _answer_alone(decoder: Decoder, reader: Reader[Any], prompt: OpenPrompt) -> Answer:
    stream = TextStream(reader.loaded.tokenizer, prompt.stop, before=prompt.before)
    pieces = stream_answer(decoder, reader.loaded.tokenizer, prompt.ids, prompt.images, reader.params, stream)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return Answer(stream.text, end.value, tuple(stream.ids))
