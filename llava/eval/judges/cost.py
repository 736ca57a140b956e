"""What judging will cost, before the first request: tokens counted roughly, dollars if prices are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava.eval.judges.settings import JudgeSettings

LETTERS_PER_TOKEN = 4  # of English; other scripts take about a token a character
TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True)
class Estimate:
    """requests: how many have to be sent; tokens_out: at most, if every reply is as long as it may be."""

    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def __str__(self) -> str:
        cost = "" if self.dollars is None else f", at most ${self.dollars:.2f}"
        if self.dollars is None and self.requests:
            cost = " (--judge-price-in and --judge-price-out turn this into dollars)"
        return (
            f"{self.requests} to judge: about {self.tokens_in:,} tokens to read (counted roughly) and at "
            "most "
            f"{self.tokens_out:,} to write{cost}"
        )


def rough_tokens(text: str) -> int:
    """Count the tokens of a text roughly: four ASCII characters make one, other characters one each."""
    plain = sum(character.isascii() for character in text)
    return -(-plain // LETTERS_PER_TOKEN) + len(text) - plain


def estimate(prompts: Iterable[Sequence[str]], settings: JudgeSettings) -> Estimate:
    """Estimate what asking about the prompts (the texts of their messages) will take."""
    counts = [sum(rough_tokens(text) + TOKENS_PER_MESSAGE for text in texts) for texts in prompts]
    tokens_in, tokens_out = sum(counts), len(counts) * settings.max_tokens
    dollars = None
    if settings.price_in is not None or settings.price_out is not None:
        dollars = (tokens_in * (settings.price_in or 0) + tokens_out * (settings.price_out or 0)) / 1e6
    return Estimate(len(counts), tokens_in, tokens_out, dollars)
