"""One question to a judge: sent with retries that are counted, and every way to fail named."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava.eval.judges.settings import KEY_VARIABLE, JudgeSettings
from llava.utils import UserError, import_optional, shortened

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

Message = Mapping[str, str]  # role and content

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
# Settings that some models refuse by their name: what is sent in their place (None: nothing).
IN_PLACE_OF = {"max_tokens": "max_completion_tokens", "temperature": None}
_AGAIN = (408, 409, 425, 429)  # and 500 to 599
_NOT_THIS_KEY = (401, 403)


@dataclass(frozen=True)
class Reply:
    """What a judge said. model: its name as the server gave it; retries: requests that failed before."""

    text: str
    model: str
    retries: int = 0


class JudgeFailed(Exception):
    """A question that could not be judged. again: whether another try may help; wait: seconds it asks for."""

    def __init__(self, reason: str, *, again: bool = True, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.wait = wait
        self.retries = 0


class Judge:
    """A model behind a server in OpenAI's style. May be asked from several threads at once."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self.stopped = threading.Event()
        self._openai = import_optional("openai", needed_for="a judge", install="llava[eval]")
        at_openai = settings.base_url is None and not os.environ.get("OPENAI_BASE_URL")
        if at_openai and settings.key is None:
            raise UserError(
                f"the judge needs a key, but the environment variable {KEY_VARIABLE} is not set; set it, "
                "name "
                "another with --judge-key-env, or name a server of your own with --judge-base-url"
            )
        self._client: openai.OpenAI = self._openai.OpenAI(
            api_key=settings.key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=0,  # retries are counted here
        )
        self._lock = threading.Lock()
        self._sampling: dict[str, float | int] = {"temperature": 0, "max_tokens": settings.max_tokens}
        self.notes: list[str] = []

    @property
    def address(self) -> str:
        """The server's address."""
        return str(self._client.base_url)

    def shutdown_date(self) -> str | None:
        """Return the day on which the model shuts down, where the server tells; None else."""
        try:
            told = self._client.models.with_raw_response.retrieve(self.settings.model).text
            found = json.loads(told)
        except (
            self._openai.OpenAIError,
            ValueError,
        ):  # many servers have no such page: the first request tells
            return None
        date = found.get("shutdown_date") if isinstance(found, dict) else None
        return date if isinstance(date, str) and date else None

    def ask(self, messages: Sequence[Message]) -> Reply:
        """Return the reply to messages; raises JudgeFailed once the retries are used up.

        Raises UserError for what stops every question: a key or a model that the server does not know.
        """
        wait = FIRST_WAIT_S
        for retries in range(self.settings.retries + 1):
            try:
                text, model = self._once(messages)
                return Reply(text, model, retries)
            except JudgeFailed as failed:
                failed.retries = retries
                if not failed.again or retries == self.settings.retries:
                    raise
                pause = wait if failed.wait is None else failed.wait
                logger.info("asking the judge again in %.1f s: %s", pause, failed)
                if self.stopped.wait(min(pause, LONGEST_WAIT_S)):
                    raise
                wait = min(wait * 2, LONGEST_WAIT_S)
        raise AssertionError("unreachable")

    def _once(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Send one request; returns the reply's text and the model's name."""
        known = self._openai
        with self._lock:
            sampling = dict(self._sampling)
        create: Any = self._client.chat.completions.with_raw_response.create
        try:
            raw = create(model=self.settings.model, messages=[dict(one) for one in messages], **sampling)
            body = raw.text
        except known.APITimeoutError:
            raise JudgeFailed(f"no reply within {self.settings.timeout:g} s (--judge-timeout)") from None
        except known.APIConnectionError as error:
            cause = error.__cause__ or error
            raise JudgeFailed(
                f"the connection to {self.address} failed ({type(cause).__name__}: {shortened(cause, 120)})"
            ) from error
        except known.APIStatusError as error:
            raise self._fault_of(error, sampling) from error
        return _text_of(body, self.settings.model)

    def _fault_of(self, error: openai.APIStatusError, sampling: Mapping[str, Any]) -> Exception:
        """Return what an error status means: UserError for one that every question will meet."""
        status, model = error.status_code, self.settings.model
        said = shortened(" ".join(error.message.split()), 200)
        if status in _NOT_THIS_KEY:
            return UserError(f"{self.address} does not accept the key of the judge (status {status}): {said}")
        if status == 404:
            return UserError(
                f"{self.address} does not know the judge {model!r} (status 404): {said}; its models are "
                "listed "
                "under /models, and the ones that published numbers were measured with are shut down"
            )
        if error.code == "insufficient_quota":
            return UserError(f"the account of the judge {model!r} is used up: {said}")
        if status == 400 and error.param in IN_PLACE_OF and error.param in sampling:
            self._do_without(error.param)
            return JudgeFailed(f"{model} does not take {error.param}: {said}", wait=0)
        again = status in _AGAIN or status >= 500
        return JudgeFailed(f"status {status}: {said}", again=again, wait=_retry_after(error.response.headers))

    def _do_without(self, name: str) -> None:
        """Send no setting of that name from now on."""
        with self._lock:
            value = self._sampling.pop(name, None)
            if value is None:  # another thread was told before
                return
            other = IN_PLACE_OF[name]
            if other is not None:
                self._sampling[other] = value
            else:
                self.notes.append(f"the judge takes no {name}; it judged at its own, and replies may vary")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait; None where it does not say, or gives a date."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _text_of(body: str, model: str) -> tuple[str, str]:
    """Return text and model name of a chat completion; raises JudgeFailed that says what is wrong with it."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
    except ValueError:
        raise JudgeFailed(f"the reply is no JSON: {shortened(body, 80)!r}") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise JudgeFailed(f"the reply is no chat completion: {shortened(body, 120)!r}") from None
    if refusal:
        raise JudgeFailed(f"the judge refused: {shortened(refusal, 200)}", again=False)
    if choice.get("finish_reason") == "content_filter":
        raise JudgeFailed("the server's content filter held the reply back", again=False)
    if not isinstance(text, str) or not text.strip():
        cut = " before its first word; raise --max-tokens" if choice.get("finish_reason") == "length" else ""
        raise JudgeFailed(f"the reply is empty{cut}")
    name = found.get("model")
    return text, name if isinstance(name, str) and name else model
