"""The log of conversations and votes, line by line in the reference's form: {date}-conv.json."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from llava.constants import LOGDIR

logger = logging.getLogger(__name__)

VOTES = ("upvote", "downvote", "flag")


def get_conv_log_filename(log_dir: str | Path = LOGDIR) -> str:
    """Return the path of today's log."""
    now = datetime.datetime.now()
    return os.path.join(log_dir, f"{now.year}-{now.month:02d}-{now.day:02d}-conv.json")


class ConversationLog:
    """Appends lines to today's file; a failure to write is logged, and costs nobody an answer.

    folder: None writes nothing. Images are named by the MD5 of their pixels, and not kept.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def chat(
        self,
        model: str,
        state: Mapping[str, Any],
        images: Sequence[Image.Image],
        *,
        start: float,
        finish: float,
        ip: str,
    ) -> None:
        """Note an answer. start, finish: times of time.time()."""
        self._write(
            {
                "tstamp": round(finish, 4),
                "type": "chat",
                "model": model,
                "start": round(start, 4),
                "finish": round(finish, 4),
                "state": state,
                "images": [hashlib.md5(one.tobytes(), usedforsecurity=False).hexdigest() for one in images],
                "ip": ip,
            }
        )

    def vote(self, kind: str, model: str, state: Mapping[str, Any], *, ip: str) -> None:
        """Note a vote: upvote, downvote or flag."""
        self._write({"tstamp": round(time.time(), 4), "type": kind, "model": model, "state": state, "ip": ip})

    def _write(self, content: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        line = json.dumps(content) + "\n"
        try:
            os.makedirs(self.folder, exist_ok=True)
            with self._lock, open(get_conv_log_filename(self.folder), "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            logger.error("the log of conversations cannot be written: %s", error)
