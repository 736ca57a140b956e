"""`Engine`: a bounded queue and one thread that runs all answers together; for servers."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from llava.inference.dialog import Dialog, RawPrompt
from llava.inference.engine.alone import Alone
from llava.inference.engine.kept import Found, Kept
from llava.inference.engine.requests import (
    DoesNotFit,
    EngineDead,
    EngineStats,
    QueueFull,
    Ticket,
    Usage,
)
from llava.inference.engine.row import Row
from llava.inference.engine.stepper import Stepper
from llava.inference.model import LoadedModel
from llava.inference.sampling import SamplingParams
from llava.utils import UserError, check_whole, import_optional

logger = logging.getLogger(__name__)

MIB = 2**20
DEFAULT_CACHE_BYTES = 1024 * MIB
# Of the memory that is free when an engine begins, what running answers may take; as much again is needed
# for a moment when rows join or leave.
MEMORY_SHARE = 0.35
MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0
# Over so many seconds tokens per second are counted.
RATE_WINDOW_S = 10.0
# What a place in a full queue is said to take to become free before any answer has told.
FIRST_GUESS_S = 1.0


@dataclass(eq=False)
class _Job:
    """An answer in the engine: its row and its ticket."""

    row: Row
    ticket: Ticket
    copies: list[_Job]
    began: float = 0.0


class Engine:
    """Answers requests of many threads with one model, which belongs to the engine until `close`.

    Requests run together step by step: one joins between two tokens, its prompt is computed in pieces of
    `prefill_chunk` positions between the tokens of the others, and one that ends leaves at once. The KV
    caches of ended dialogs and image features stay for later prompts that begin alike (`cache_bytes`; what
    was used longest ago goes first), unless the model has changed.

    max_running: answers at a time. max_waiting: length of the queue, first come, first served. memory_bytes:
    what running answers may take (default: a share of the memory that is free now); what does not fit waits.
    alone: decodes an answer while no other runs; the engine compiles it before it takes requests.
    Answers are those of ChatSession: token for token for greedy choice in float32, and for a seed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_running: int = 8,
        max_waiting: int = 64,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        prefill_chunk: int = 512,
        memory_bytes: int | None = None,
        alone: Alone | None = None,
    ) -> None:
        for name, value in (("max_running", max_running), ("prefill_chunk", prefill_chunk)):
            check_whole(name, value, 1)
        for name, value in (("max_waiting", max_waiting), ("cache_bytes", cache_bytes)):
            check_whole(name, value, 0)
        self.loaded = loaded
        self.max_running, self.max_waiting = max_running, max_waiting
        self._kept = Kept(cache_bytes)
        self._stepper = Stepper(
            loaded,
            self._kept,
            chunk=prefill_chunk,
            keep_answers=True,
            images_at_once=1,
            contain=True,
            alone=alone,
        )
        self._tokenizing = threading.Lock()
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[_Job] = deque()
        self._running: dict[Row, _Job] = {}
        self._number = 0
        self._closing = False
        self._died: BaseException | None = None
        self._counts: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._rates: deque[tuple[float, int]] = deque()
        self._seconds: deque[float] = deque(maxlen=32)  # that the last answers ran
        self._thread = threading.Thread(target=self._run, name="llava-engine", daemon=True)
        self._measured: Future[int] = Future()
        self._thread.start()
        self._position_bytes = self._measured.result()
        free = _free_memory(loaded.device) if memory_bytes is None else memory_bytes
        self._kv_budget = int(free * MEMORY_SHARE) if memory_bytes is None else memory_bytes

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return not self._closing and self._died is None and self._thread.is_alive()

    def submit(
        self,
        prompt: Dialog | RawPrompt,
        params: SamplingParams,
        *,
        top_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Ticket:
        """Take a request and return its ticket; never waits for the model.

        top_logprobs: tell log-probabilities, of so many likeliest tokens besides the chosen one (0 to 20).
        logit_bias: token id -> number (-100 to 100) that is added to its score. Raises QueueFull, EngineDead,
        PromptTooLong, DoesNotFit, and UserError for what cannot be asked.
        """
        (ticket,) = self.submit_choices(prompt, params, n=1, top_logprobs=top_logprobs, logit_bias=logit_bias)
        return ticket

    def submit_choices(
        self,
        prompt: Dialog | RawPrompt,
        params: SamplingParams,
        *,
        n: int,
        top_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> list[Ticket]:
        """Take one prompt for n answers, which share its computation; see submit.

        With a seed, answer i is that of seed + i.
        """
        self._check_alive()
        check_whole("n", n, 1)
        if n > self.max_running:
            raise UserError(f"n is {n}; this engine gives at most {self.max_running} answers at a time")
        rows = self._rows(prompt, params, n, top_logprobs, logit_bias)
        needed = n * rows[0].n_final * self._position_bytes
        if needed > self._kv_budget:
            raise DoesNotFit(
                f"the request takes up to {needed / MIB:.1f} MiB ({n} x {rows[0].n_final} positions), the "
                f"engine has {self._kv_budget / MIB:.1f} MiB; ask for fewer tokens or answers, or less text"
            )
        with self._changed:
            self._check_alive()
            if len(self._waiting) >= self.max_waiting and (self._waiting or self._is_full(n)):
                raise QueueFull(len(self._waiting), self._retry_after())
            jobs = [_Job(row, self._ticket(row), []) for row in rows]
            jobs[0].copies = jobs[1:]
            rows[0].copies = rows[1:]
            self._waiting.append(jobs[0])
            self._changed.notify_all()
        return [one.ticket for one in jobs]

    def stats(self) -> EngineStats:
        """Return the engine's numbers."""
        now = time.monotonic()
        with self._changed:
            counts = self._counts
            recent = [(at, count) for at, count in self._rates if now - at <= RATE_WINDOW_S]
            return EngineStats(
                running=len(self._running),
                waiting=len(self._waiting),
                max_running=self.max_running,
                max_waiting=self.max_waiting,
                kv_bytes=counts["kv_bytes"],
                kv_budget=self._kv_budget,
                cache_bytes=self._kept.n_bytes,
                cache_budget=self._kept.budget,
                cache_entries=len(self._kept),
                tokens_per_second=sum(count for _, count in recent) / RATE_WINDOW_S,
                steps_total=counts["steps"],
                generated_tokens_total=counts["generated"],
                prompt_tokens_total=counts["prompt"],
                cached_tokens_total=counts["cached"],
                prefix_hits_total=self._kept.prefix_hits,
                prefix_misses_total=self._kept.prefix_misses,
                image_hits_total=self._kept.image_hits,
                image_misses_total=self._kept.image_misses,
                requests_total=dict(self._ended),
            )

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those that run or wait go on for `drain_seconds`, then end the rest."""
        deadline = time.monotonic() + drain_seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (self._waiting or self._running) and self._died is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    break
                self._changed.wait(left)
            if self._died is None:
                self._died = EngineDead("the engine was closed")
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- in the threads of those who ask ----

    def _rows(
        self,
        prompt: Dialog | RawPrompt,
        params: SamplingParams,
        n: int,
        top_logprobs: int | None,
        logit_bias: Mapping[int, float] | None,
    ) -> list[Row]:
        """Read a request; UserError for what cannot be asked."""
        if params.num_beams != 1:
            raise UserError(f"num_beams is {params.num_beams}; the engine answers with 1 beam only")
        if top_logprobs is not None:
            check_whole("top_logprobs", top_logprobs, 0)
            if top_logprobs > MAX_TOP_LOGPROBS:
                raise UserError(f"top_logprobs is {top_logprobs}; expected at most {MAX_TOP_LOGPROBS}")
        _check_bias(logit_bias, self.loaded.model.get_output_embeddings().weight.shape[0])
        with self._tokenizing:
            read = self.loaded.read(prompt, params.stop)
        opened = self.loaded.open(read)
        rows = []
        for index in range(n):
            own = params if params.seed is None else SamplingParams.of(params, seed=params.seed + index)
            rows.append(
                Row(
                    self.loaded,
                    opened,
                    own,
                    streaming=True,
                    top_logprobs=top_logprobs,
                    logit_bias=logit_bias,
                )
            )
        return rows

    def _ticket(self, row: Row) -> Ticket:
        self._number += 1
        return Ticket(
            self._number, row.n_prompt, place_of=self._place_of, cancelled=lambda ticket: self._cancel(row)
        )

    def _place_of(self, ticket: Ticket) -> int:
        with self._changed:
            for place, job in enumerate(self._waiting, start=1):
                if any(one.ticket is ticket for one in (job, *job.copies)):
                    return place
        return 0

    def _cancel(self, row: Row) -> None:
        """Mark a row as cancelled; a waiting request all of whose rows are leaves the queue."""
        row.cancelled = True
        with self._changed:
            for job in self._waiting:
                jobs = (job, *job.copies)
                if any(one.row is row for one in jobs) and all(one.row.cancelled for one in jobs):
                    self._waiting.remove(job)
                    for one in jobs:
                        self._end(one, "cancelled")
                    break
            self._changed.notify_all()

    def _check_alive(self) -> None:
        if not self.alive:
            raise EngineDead(f"the engine takes no requests: {self._died or 'it is being closed'}")

    def _is_full(self, n: int) -> bool:
        return len(self._running) + n > self.max_running

    def _retry_after(self) -> float:
        """Estimate the seconds until a place in the queue becomes free."""
        if not self._seconds:
            return FIRST_GUESS_S
        return max(0.1, sum(self._seconds) / len(self._seconds) / self.max_running)

    # ---- in the engine's thread ----

    def _run(self) -> None:
        """Step while there is something to do; wait without spinning otherwise."""
        try:
            self._measured.set_result(self._stepper.measure())  # here: CUDA graphs belong to their thread
        except BaseException as error:
            self._measured.set_exception(error)  # whoever makes the engine gets it
            return
        try:
            while True:
                with self._changed:
                    while not self._waiting and not self._running and self._died is None:
                        if self._closing:
                            self._changed.notify_all()
                        self._changed.wait()
                    if self._died is not None:
                        break
                self._admit()
                ended = self._stepper.step()
                self._deliver(ended)
        except BaseException as error:
            logger.exception("the engine ended by a fault")
            with self._changed:
                self._died = error
        self._end_all()

    def _end_all(self) -> None:
        """End what is left when the engine ends."""
        with self._changed:
            left = [*self._running.values()]
            left += [one for job in self._waiting for one in (job, *job.copies)]
            self._running.clear()
            self._waiting.clear()
            for job in left:
                self._end(job, "error", EngineDead(f"the engine ended before the answer: {self._died}"))
            self._changed.notify_all()

    def _admit(self) -> None:
        """Begin the requests at the head of the queue that fit together; strictly in their order."""
        if self._stepper.prefilling:
            return
        if self._stepper.again:
            row = self._stepper.again.pop(0)
            self._stepper.begin([(row, self._kept.find(row.keys))])
            return
        if not self._waiting:  # only this thread takes requests out to run them
            return
        self._stepper.notice_changes()
        group: list[tuple[Row, Found]] = []
        with self._changed:
            while self._waiting:
                job = self._waiting[0]
                if not self._has_room(job):
                    break
                found = self._kept.find(job.row.keys)
                if group and not self._stepper.fits_group(group, job.row, found):
                    break
                self._kept.count(found)
                self._waiting.popleft()
                group.append((job.row, found))
                for one in (job, *job.copies):
                    one.began = time.monotonic()
                    self._running[one.row] = one
        if group:
            self._stepper.begin(group)

    def _has_room(self, job: _Job) -> bool:
        """Tell whether a request may begin now: rows are as long as the longest of them may become."""
        rows = [*self._running, job.row, *(one.row for one in job.copies)]
        if len(rows) > self.max_running:
            return False
        longest = max(row.n_final for row in rows)
        return len(rows) * longest * self._position_bytes <= self._kv_budget

    def _deliver(self, ended: Sequence[Row]) -> None:
        """Hand new pieces to the tickets, and end those whose rows have ended."""
        generated = 0
        for row, job in list(self._running.items()):
            generated += len(row.new_ids) - job.ticket.usage.completion_tokens
            job.ticket.usage = Usage(row.n_prompt, row.n_cached, len(row.new_ids))
            if row.new_ids and job.ticket.time_to_first_token is None:
                job.ticket.time_to_first_token = time.monotonic() - job.ticket.submitted
            for piece in row.pieces:
                job.ticket.put(piece)
            row.pieces.clear()
        now = time.monotonic()
        with self._changed:
            for row in ended:
                job = self._running.pop(row)
                self._seconds.append(now - job.began)
                self._end(job, row.reason or "error", row.error)
            self._counts["steps"] += 1
            self._counts["generated"] += generated
            self._counts["kv_bytes"] = self._stepper.kv_bytes
            self._rates.append((now, generated))
            while now - self._rates[0][0] > RATE_WINDOW_S:
                self._rates.popleft()
            if ended:
                self._changed.notify_all()

    def _end(self, job: _Job, reason: str, error: Exception | None = None) -> None:
        """End a ticket, and count it."""
        self._ended[reason] += 1
        self._counts["prompt"] += job.ticket.usage.prompt_tokens
        self._counts["cached"] += job.ticket.usage.cached_tokens
        job.ticket.end(reason, error)


def _check_bias(bias: Mapping[int, float] | None, n_ids: int) -> None:
    """Raise UserError for ids that are none, and for numbers that are too large."""
    for token, value in (bias or {}).items():
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < n_ids:
            raise UserError(f"logit_bias names the token {token!r}; expected ids from 0 to {n_ids - 1}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) <= MAX_BIAS:
            raise UserError(f"logit_bias of token {token} is {value!r}; expected -100 to 100")


def _free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    psutil = import_optional("psutil", needed_for="the engine's memory budget", install="psutil")
    return psutil.virtual_memory().available
