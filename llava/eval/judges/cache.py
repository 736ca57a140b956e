"""Replies of a judge that were paid for, kept by prompt and model, one small file each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from llava.atomic import write_text
from llava.eval.judges.client import Judge, Message, Reply


def prompt_key(messages: Sequence[Message]) -> str:
    """Return the SHA-256 of what is asked."""
    text = json.dumps([[one["role"], one["content"]] for one in messages])
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """A folder of replies. Only those that could be read are put there: a bad one is asked for again."""

    def __init__(self, folder: Path, judge: Judge) -> None:
        self._folder = folder
        self._of = f"{judge.address}\n{judge.settings.model}\n{judge.settings.max_tokens}\n"

    def _place(self, key: str) -> Path:
        name = hashlib.sha256(f"{self._of}{key}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"

    def get(self, messages: Sequence[Message]) -> Reply | None:
        """Return the reply that is kept, if any; a damaged file counts as none."""
        try:
            kept = json.loads(self._place(prompt_key(messages)).read_text(encoding="utf-8"))
            text, model = kept["text"], kept["model"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Reply(text, model) if isinstance(text, str) and isinstance(model, str) else None

    def put(self, messages: Sequence[Message], reply: Reply) -> None:
        """Keep a reply."""
        place = self._place(prompt_key(messages))
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps({"model": reply.model, "text": reply.text}))
