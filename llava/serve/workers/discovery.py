"""What a client finds out of a controller's workers: their templates, and whether they take messages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx2

from llava.conversation import CHAT_TEMPLATE, choose_template, conv_templates
from llava.serve.workers import frames
from llava.serve.workers.frames import MESSAGES

# For so long the answer of a worker behind a controller that does not pass on what workers tell is believed.
PROBE_SECONDS = 300.0
MAX_KNOWN = 1000  # workers come and go under ever new names


class Way(NamedTuple):
    """How a model is asked: the key of its template, and whether its worker renders messages with it."""

    template: str
    by_messages: bool


def takes_messages(model: str, told: Mapping[str, Any]) -> bool:
    """Tell whether a model's worker takes messages; told: see template_for."""
    names = told.get(MESSAGES)
    return isinstance(names, list) and model in names


def template_for(model: str, told: Mapping[str, Any]) -> str:
    """Return the key of a model's template: what its worker tells, else what its name suggests.

    told: the answer of a controller's /list_models or of a worker's /worker_get_status. A template that is
    unknown here counts as the tokenizer's own where the worker renders it.
    """
    key = _told_template(model, told)
    if key in conv_templates:
        return str(key)
    return CHAT_TEMPLATE if takes_messages(model, told) else choose_template(model)[0]


def way_to_ask(model: str, told: Mapping[str, Any], conv_mode: str | None = None) -> Way:
    """Return how to ask a model; conv_mode: a template to be used whatever is told, see template_for."""
    if conv_mode is None:
        return Way(template_for(model, told), takes_messages(model, told))
    return Way(conv_mode, takes_messages(model, told) and _told_template(model, told) == conv_mode)


def _told_template(model: str, told: Mapping[str, Any]) -> str | None:
    templates = told.get("templates")
    key = templates.get(model) if isinstance(templates, Mapping) else None
    return key if isinstance(key, str) else None


class Discovery:
    """What the workers behind a controller tell, also where the controller passes it on to nobody.

    Such a one (the reference's) still relays requests as they are: a worker that gets an empty list of
    messages answers with its status, and an older one with an error.
    """

    def __init__(self, address: str, *, api_key: str | None) -> None:
        self._address, self._api_key = address, api_key
        self._known: dict[str, tuple[float, Mapping[str, Any]]] = {}  # model -> when, and its worker's status

    def told(self, model: str, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what is told of a model; listed: the answer of /list_models. May wait for a worker."""
        if MESSAGES in listed:
            return listed
        when, status = self._known.get(model, (-PROBE_SECONDS, {}))
        if time.monotonic() - when < PROBE_SECONDS:
            return status or listed
        try:
            status = self._ask(model)
        except (httpx2.HTTPError, httpx2.InvalidURL, frames.FrameError):
            return listed  # the request itself will tell what is wrong
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._known[model] = time.monotonic(), status
        return status or listed

    def _ask(self, model: str) -> Mapping[str, Any]:
        """Return the status of a model's worker; empty for one that tells none."""
        url = f"{self._address}/worker_generate_stream"
        with (
            frames.open_client(self._api_key) as client,
            client.stream("POST", url, json={"model": model, MESSAGES: []}) as response,
        ):
            response.raise_for_status()
            first = next(frames.read_frames(response.iter_raw()), {})
        status = first.get("worker_status")
        return status if isinstance(status, Mapping) else {}
