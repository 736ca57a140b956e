"""What the application is told: the model that it serves, and the limits that it keeps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava.conversation import Conversation
from llava.serve.errors import bad_request
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

    config: the model's own. context: how many positions the model has, the answer included.
    """

    names: tuple[str, ...]
    template: Conversation
    tokenizer: PreTrainedTokenizerBase
    context: int
    vocabulary: int
    takes_images: bool = True
    config: object = None
    created: int = field(default_factory=lambda: int(time.time()))

    def check_length(self, n_characters: int, param: str) -> None:
        """Raise ServeError (400) for a text that cannot fit, without the time that its tokens would take."""
        if n_characters > self.context * MAX_TOKEN_CHARACTERS:
            raise bad_request(
                f"the texts have {n_characters:,} characters, which are more than the {self.context} "
                "positions of this model can hold; send less",
                param=param,
                code="context_length_exceeded",
            )


@dataclass(frozen=True)
class ServerSettings:
    """A model and the limits of its clients; without a key it answers under this machine's names only."""

    model: ServedModel
    api_key: str | None = None
    limits: Limits = Limits()
    images: FetchPolicy = FetchPolicy()
    max_images: int = 16
    default_max_tokens: int = DEFAULT_MAX_TOKENS
