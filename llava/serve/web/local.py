"""Answers of an engine in the same process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from llava.conversation import Conversation
from llava.inference.engine import AnyEngine, Dialog, Piece, Waiting
from llava.inference.messages import read_messages
from llava.inference.sampling import MIN_TEMPERATURE, SamplingParams
from llava.serve.openai.answering import Job, follow, serve_error, submit
from llava.serve.openai.settings import ServedModel
from llava.serve.web.asking import Progress, Question, Said

SMALLEST_TOP_P = 1e-6  # 0, which the page can send, keeps the likeliest token alone


class EngineBackend:
    """Asks an engine for the model that it has."""

    def __init__(self, engine: AnyEngine, model: ServedModel) -> None:
        self.engine, self.model = engine, model

    async def models(self) -> list[str]:
        """Return the model's first name; the others are for requests of programs."""
        return [self.model.names[0]]

    def template_of(self, model: str) -> Conversation:
        """Return the model's template."""
        return self.model.template

    async def answer(self, question: Question) -> AsyncGenerator[Progress, None]:
        """Yield the answer as it grows. Raises ServeError."""
        job = Job([self._dialog(question)], _sampling(question))
        tickets = await submit(self.engine, job)
        text = ""
        async with aclosing(follow(tickets)) as events:
            async for _, event in events:
                if isinstance(event, Piece):
                    text += event.text
                yield Progress(text, event.place if isinstance(event, Waiting) else 0)

    def _dialog(self, question: Question) -> Dialog:
        self.model.check_length(sum(len(one.text) for one in question.turns), "text")
        try:
            return read_messages(
                [message for turn in question.turns for message in _messages(turn)],
                self.model.template,
                self.model.config,
                has_tower=self.model.takes_images,
            )
        except Exception as error:
            raise serve_error(error) from error


def _messages(turn: Said) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": one} for one in turn.images]
    question = {"role": "user", "content": [*parts, {"type": "text", "text": turn.text}]}
    if turn.answer is None:
        return [question]
    return [question, {"role": "assistant", "content": turn.answer}]


def _sampling(question: Question) -> SamplingParams:
    greedy = question.temperature < MIN_TEMPERATURE
    return SamplingParams(
        temperature=0.0 if greedy else question.temperature,
        top_p=max(question.top_p, SMALLEST_TOP_P),
        max_new_tokens=question.max_new_tokens,
    )
