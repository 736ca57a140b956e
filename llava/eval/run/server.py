"""A running server with OpenAI's interface as the model of a run: bounded concurrency, retries."""

from __future__ import annotations

import base64
import io
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import requests

from llava.eval.run.asking import Outcome
from llava.eval.tasks.base import Ask, JsonValue, PackedImage
from llava.images import as_image, image_size
from llava.inference.dialog import ImageSource
from llava.inference.sampling import SamplingParams
from llava.utils import UserError, check_whole, shortened

# What servers read as it is; other images are sent as PNG.
_KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
LEAST_AWAY = 8  # questions in a row, and at least two for each request at a time, until a server is gone
LONGEST_TIMEOUT_S = 86400.0
# Statuses that another try may mend; the others say what is wrong with the question or the address.
TRIED_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
WRONG_ADDRESS = (401, 403, 404, 405)


class _Again(Exception):
    """A failure that another try may mend. pause: seconds that the server asks for."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Away(_Again):
    """A failure to reach the server at all."""


class ServerModel:
    """Asks a server; see Asker. Raises UserError when it cannot be reached at all or refuses the key.

    concurrency: requests at a time. retries: further tries of one question, after pauses that double.
    """

    def __init__(
        self,
        base_url: str,
        params: SamplingParams,
        *,
        api_key: str | None = None,
        model: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout_s: float = 300.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        check_whole("--concurrency", concurrency, 1)
        check_whole("--retries", retries, 0)
        if not 0 < timeout_s <= LONGEST_TIMEOUT_S:
            raise UserError(
                f"--request-timeout is {timeout_s}; expected seconds, more than 0 and at most a day"
            )
        if not base_url.lower().startswith(("http://", "https://")):
            raise UserError(
                f"--base-url is {shortened(base_url)!r}; expected http://HOST:PORT/v1 or https://..."
            )
        self._url, self.params, self._timeout_s, self._sleep = base_url.rstrip("/"), params, timeout_s, sleep
        self._concurrency, self._retries = concurrency, retries
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._own = threading.local()
        self._n_retries = 0
        self._counting = threading.Lock()
        self._returned: set[str] = set()
        self._away, self._most_away = 0, max(LEAST_AWAY, 2 * concurrency)
        self._model_id = model or self._first_model()

    @property
    def model_id(self) -> str:
        """The name that the server is asked for."""
        return self._model_id

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """Sampling; template and weights are the server's."""
        given = {name: value for name, value in asdict(self.params).items() if value not in (None, ())}
        return {"weights": None, "template": "the server's", **given}

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """Its address, the models that it said had answered, and how often it was asked again."""
        return {
            "base_url": self._url,
            "template_reason": "the server chooses it",
            "models_returned": sorted(self._returned),
            "concurrency": self._concurrency,
            "retries": self._n_retries,
        }

    def render(self, ask: Ask) -> str:
        """Return the text that is sent; the server puts it into its template."""
        return ask.text

    def answer(self, asks: Mapping[int, Ask]) -> Iterator[Outcome]:
        """Yield an outcome for each question as it comes."""
        waiting = iter(asks.items())
        running: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(self._concurrency, "llava-ask") as pool:
            try:
                while True:
                    while len(running) < 2 * self._concurrency and (one := next(waiting, None)) is not None:
                        running.add(pool.submit(self._one, *one))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
                    if self._away >= self._most_away:
                        raise UserError(
                            f"the server at {self._url} is gone: it could not be reached for "
                            f"{self._away} questions in a row, each tried {self._retries + 1} times; start "
                            "it and run the same command again, which asks what has no answer yet"
                        )
            finally:
                for future in running:
                    future.cancel()

    # ---- one question ----

    def _one(self, index: int, ask: Ask) -> Outcome:
        """Ask one question, again and again as far as that may help."""
        try:
            body = self._body(ask)
        except UserError as error:
            return Outcome(index, error=str(error))
        reason, away = "", False
        for attempt in range(self._retries + 1):
            try:
                return self._outcome(index, self._post("/chat/completions", body))
            except _Again as failure:
                reason, away = str(failure), isinstance(failure, _Away)
                if attempt < self._retries and self._away < self._most_away:
                    with self._counting:
                        self._n_retries += 1
                    doubled = (
                        FIRST_PAUSE_S * 2**attempt * random.Random(index * 97 + attempt).uniform(0.75, 1.25)
                    )
                    self._sleep(min(failure.pause or doubled, LONGEST_PAUSE_S))
        with self._counting:
            self._away = self._away + 1 if away else 0
        return Outcome(index, error=f"no answer after {self._retries + 1} tries: {reason}")

    def _body(self, ask: Ask) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": address_of(one)}} for one in ask.images
        ]
        parts.append({"type": "text", "text": ask.text})
        system = [] if ask.system is None else [{"role": "system", "content": ask.system}]
        body: dict[str, Any] = {
            "model": self._model_id,
            "messages": [*system, {"role": "user", "content": parts if ask.images else ask.text}],
            "temperature": self.params.temperature,
            "max_tokens": self.params.max_new_tokens,
        }
        optional = {
            "top_p": self.params.top_p,
            "seed": self.params.seed,
            "stop": list(self.params.stop) or None,
        }
        return body | {name: value for name, value in optional.items() if value is not None}

    def _outcome(self, index: int, reply: Any) -> Outcome:
        """Read a reply; another try is made for one that is no answer."""
        if isinstance(reply, UserError):
            return Outcome(index, error=str(reply))
        try:
            choice = reply["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason") or ""
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Again(f"the reply is no chat completion: {shortened(reply, 120)}") from error
        if not isinstance(text, str):
            raise _Again(f"the reply's content is a {type(text).__name__}; expected a text")
        with self._counting:
            self._returned.add(str(reply.get("model", self._model_id)))
        return Outcome(index, text.strip(), str(reason))

    # ---- HTTP ----

    def _session(self) -> requests.Session:
        """Return the connections of this thread."""
        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
        session: requests.Session = self._own.session
        return session

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of a reply, or a UserError for a request that the server does not take."""
        try:
            response = self._session().post(
                self._url + path, json=body, headers=self._headers, timeout=self._timeout_s
            )
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            reason = f"the server cannot be reached ({type(error).__name__})"
            raise (_Away if isinstance(error, requests.ConnectionError) else _Again)(reason) from error
        self._away = 0
        if response.status_code in TRIED_AGAIN:
            raise _Again(f"HTTP status {response.status_code} {_said(response)}", _pause_of(response))
        if response.status_code in WRONG_ADDRESS:
            raise UserError(_refused(self._url + path, response))
        if response.status_code != 200:
            return UserError(
                f"the server refuses it with HTTP status {response.status_code} {_said(response)}"
            )
        try:
            return response.json()
        except requests.exceptions.JSONDecodeError as error:
            raise _Again(f"the reply is no JSON: {shortened(response.text, 120)}") from error

    def _first_model(self) -> str:
        """Return the first model that the server lists. Raises UserError."""
        try:
            response = requests.get(f"{self._url}/models", headers=self._headers, timeout=self._timeout_s)
        except requests.RequestException as error:
            raise UserError(
                f"no server answers at {self._url} ({type(error).__name__}); start it, or look at "
                "--base-url, which ends in /v1 for most"
            ) from error
        if response.status_code != 200:
            raise UserError(_refused(f"{self._url}/models", response))
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}/models lists no model; name one with --model") from error


def address_of(source: ImageSource | PackedImage) -> str:
    """Return an image as an address in a message: a URL as it is, else its bytes; raises ImageError."""
    data = b""
    if isinstance(source, PackedImage):
        data, source = source.encoded, source.open()
    if isinstance(source, (str, Path)):
        if "://" in str(source):
            return str(source)
        image_size(source)  # says what is wrong with a file that is no image
        data = Path(source).read_bytes()
    for head, kind in _KINDS.items():
        if data.startswith(head):
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"
    written = io.BytesIO()
    as_image(source).save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def _said(response: requests.Response) -> str:
    """Return what a server says about an error, in brackets."""
    try:
        error = response.json()["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        text = response.text
    text = " ".join(str(text).split())
    return f"({shortened(text, 200)})" if text else ""


def _refused(address: str, response: requests.Response) -> str:
    remedy = "look at --api-key" if response.status_code in (401, 403) else "look at --base-url and --model"
    return f"{address} answers with HTTP status {response.status_code} {_said(response)}; {remedy}"


def _pause_of(response: requests.Response) -> float | None:
    """Return the seconds that Retry-After asks for."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
