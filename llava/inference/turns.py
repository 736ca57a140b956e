"""Prompts that wait for their turn: opened when it comes, or by threads a little before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from llava.inference.dialog import OpenPrompt, Prompt
from llava.inference.engine.order import Place
from llava.utils import UserError

THREADS = 4  # that decode images; decoders let other threads run

OnFailure = Callable[[int, UserError], object]
_Waiting = tuple[Place, "Future[OpenPrompt] | None"]


class Turns:
    """Prompts in the order in which they are answered.

    ahead: so many are opened before their turn, by threads, while the model works. on_failure: is told of a
    prompt that cannot be opened, which is then passed over; without it the error is raised.
    """

    def __init__(
        self,
        places: Iterable[Place],
        open_prompt: Callable[[int, Prompt], OpenPrompt],
        *,
        ahead: int = 0,
        on_failure: OnFailure | None = None,
    ) -> None:
        self._open, self._ahead, self._on_failure = open_prompt, ahead, on_failure
        self._pool = ThreadPoolExecutor(THREADS, "llava-images") if ahead else None
        self._begun: deque[_Waiting] = deque()  # those that threads work on
        self._waiting: deque[_Waiting] = deque((one, None) for one in places)
        self._begin()

    def __len__(self) -> int:
        return len(self._begun) + len(self._waiting)

    def __enter__(self) -> Turns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @property
    def next(self) -> Place:
        """The prompt whose turn is next."""
        return (self._begun or self._waiting)[0][0]

    def take(self) -> OpenPrompt | None:
        """Return the next prompt, opened; None where it could not be and `on_failure` was told."""
        place, begun = (self._begun or self._waiting).popleft()
        self._begin()
        try:
            return self._open(place.index, place.prompt) if begun is None else begun.result()
        except UserError as error:
            if self._on_failure is None:
                raise
            self._on_failure(place.index, error)
            return None

    def _begin(self) -> None:
        """Let threads open the next prompts."""
        while self._pool is not None and self._waiting and len(self._begun) < self._ahead:
            place, _ = self._waiting.popleft()
            self._begun.append((place, self._pool.submit(self._open, place.index, place.prompt)))
