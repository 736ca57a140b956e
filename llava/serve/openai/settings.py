"""What the application is told: the model that it serves, and the limits that it keeps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava.conversation import Conversation
from llava.serve.errors import bad_request
from llava.serve.guard import PageGuard
from llava.serve.limits import Limits
from llava.serve.safe_fetch import FetchPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The longest answer where a request names no length: long enough for any answer, short enough for a queue.
DEFAULT_MAX_TOKENS = 1024
# No vocabulary has longer tokens; the longest are rows of blanks or dashes.
MAX_TOKEN_CHARACTERS = 256


@dataclass(frozen=True)
class ServedModel:
    """What a server knows of its model: its names, its template, and how ids are spelled.

    config: the model's own. context: how many positions the model has, the answer included; None: not known.
    longest_answer: tokens of an answer at most (default: the context). by_worker: a controller's worker
    answers, which knows fewer settings.
    """

    names: tuple[str, ...]
    template: Conversation
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    vocabulary: int
    takes_images: bool = True
    config: object = None
    by_worker: bool = False
    longest_answer: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def most_tokens(self) -> int:
        """How long an answer can be at most."""
        return self.longest_answer or self.context or DEFAULT_MAX_TOKENS

    def check_length(self, n_characters: int, param: str) -> None:
        """Raise ServeError (400) for a text that cannot fit, without the time that its tokens would take."""
        if self.context is not None and n_characters > self.context * MAX_TOKEN_CHARACTERS:
            raise bad_request(
                f"the texts have {n_characters:,} characters, which are more than the {self.context} "
                "positions of this model can hold; send less",
                param=param,
                code="context_length_exceeded",
            )


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """The limits of a server's clients; without a key it answers under this machine's names only."""

    api_key: str | None = None
    limits: Limits = Limits()
    images: FetchPolicy = FetchPolicy()
    max_images: int = 16
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    page: PageGuard | None = None


@dataclass(frozen=True)
class ServerSettings(ClientSettings):
    """The settings of a server with a model of its own."""

    model: ServedModel
