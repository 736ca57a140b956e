"""What the application is told: the model that it serves, and the limits that it keeps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from llava.conversation import Conversation
from llava.serve.limits import Limits
from llava.serve.safe_fetch import FetchPolicy

# The longest answer where a request names no length: long enough for any answer, short enough for a queue.
DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True)
class ServedModel:
    """What a server knows of its model: its names, its template, and how ids are spelled.

    start_end: config.mm_use_im_start_end. context: how many positions the model has, the answer included.
    """

    names: tuple[str, ...]
    template: Conversation
    tokenizer: Any
    context: int
    vocabulary: int
    takes_images: bool = True
    start_end: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class ServerSettings:
    """A model and the limits of its clients.

    local_only: requests have to name this machine in their Host header; for servers without a key.
    keep_alive_s: how long a stream may be silent.
    """

    model: ServedModel
    api_key: str | None = None
    limits: Limits = Limits()
    images: FetchPolicy = FetchPolicy()
    max_images: int = 16
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    local_only: bool = True
    drain_seconds: float = 30.0
