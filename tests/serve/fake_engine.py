"""An engine without a model, for tests of what stands in front of one: it says what a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava.conversation import conv_templates
from llava.inference.engine import (
    Dialog,
    EngineDead,
    EngineStats,
    Piece,
    RawPrompt,
    Ticket,
    Token,
    Usage,
)
from llava.inference.sampling import SamplingParams
from llava.serve.openai.settings import ServedModel, ServerSettings

WORDS = ("Hel", "lo ", "wörld", "!")


class Spelling:
    """A tokenizer as far as a server needs one."""

    all_special_ids = (2,)
    pieces = ("<unk>", "<s>", "</s>", "\u2581Hel", "lo", "<0xC3>", "wörld", "!")

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.pieces[token] if token < len(self.pieces) else None

    def __len__(self) -> int:
        return len(self.pieces)

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[one] for one in ids)


@dataclass
class Submitted:
    """What an engine was asked."""

    prompt: Dialog | RawPrompt
    params: SamplingParams
    top_logprobs: int | None
    logit_bias: Mapping[int, float] | None
    ticket: Ticket


@dataclass
class FakeEngine:
    """Answers every request with `words`, one a step.

    take: no request is taken before it is set; arrived: how many came. go: no answer begins before it is
    set. place: what a waiting ticket says. refusal: raised by submit. failure: ends answers after
    `fail_after` words. endless: answers go on until they are cancelled.
    """

    words: Sequence[str] = WORDS
    pause_s: float = 0.0
    reason: str = "stop"
    refusal: Exception | None = None
    failure: Exception | None = None
    fail_after: int = 1
    endless: bool = False
    place: int = 1
    alive: bool = True
    take: threading.Event = field(default_factory=threading.Event)
    arrived: int = 0
    go: threading.Event = field(default_factory=threading.Event)
    asked: list[Submitted] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.take.set()
        self.go.set()

    def submit(self, prompt: Any, params: SamplingParams, **options: Any) -> Ticket:
        return self.submit_choices(prompt, params, n=1, **options)[0]

    def submit_choices(
        self,
        prompt: Dialog | RawPrompt,
        params: SamplingParams,
        *,
        n: int,
        top_logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> list[Ticket]:
        self.arrived += 1
        self.take.wait(60)
        if self.refusal is not None:
            raise self.refusal
        tickets = []
        for _ in range(n):
            ticket = Ticket(
                len(self.asked),
                10,
                place_of=lambda _: 0 if self.go.is_set() else self.place,
                cancelled=lambda one: one.end("cancelled"),
            )
            self.asked.append(Submitted(prompt, params, top_logprobs, logit_bias, ticket))
            threading.Thread(target=self._answer, args=(ticket, top_logprobs), daemon=True).start()
            tickets.append(ticket)
        return tickets

    def _answer(self, ticket: Ticket, top_logprobs: int | None) -> None:
        while not self.go.wait(0.02):
            if ticket.done:
                return
        words = list(self.words) * (10_000 if self.endless else 1)
        for index, word in enumerate(words):
            if ticket.done:
                return
            if self.failure is not None and index >= self.fail_after:
                return ticket.end("error", self.failure)
            time.sleep(self.pause_s)
            token = Token(3 + index % len(self.words))
            if top_logprobs is not None:
                top = tuple((3 + one, -0.5 - one) for one in range(top_logprobs))
                token = Token(token.id, -0.5, top)
            ticket.time_to_first_token = ticket.time_to_first_token or 0.01
            ticket.usage = Usage(10, 4, index + 1)
            ticket.put(Piece(word, (token,)))
        ticket.end(self.reason)

    def stats(self) -> EngineStats:
        running = sum(not one.ticket.done for one in self.asked)
        return EngineStats(running, 0, 8, 32, 0, 100, 0, 100, 0, 0.0, requests_total={"stop": 3})

    def close(self, drain_seconds: float = 0.0) -> None:
        self.closed.append(drain_seconds)
        self.alive = False
        for one in self.asked:
            one.ticket.end("error", EngineDead("the engine was closed"))

    def wait_until_idle(self, seconds: float = 30.0) -> None:
        """Return once no answer runs; AssertionError when that takes too long."""
        deadline = time.monotonic() + seconds
        while any(not one.ticket.done for one in self.asked):
            assert time.monotonic() < deadline, "an answer still runs"
            time.sleep(0.01)


def settings(**changes: Any) -> ServerSettings:
    """Return the settings of a server of a fake model, in the template of LLaVA-1.5."""
    model = ServedModel(
        names=("llava-test", "gpt-4o"),
        template=conv_templates["llava_v1"],
        tokenizer=Spelling(),
        context=512,
        vocabulary=100,
    )
    return ServerSettings(**{"model": model, **changes})
