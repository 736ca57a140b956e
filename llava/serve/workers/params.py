"""What a request to a worker holds: the reference's fields, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.inference.dialog import RawPrompt
from llava.inference.sampling import SamplingParams
from llava.serve.errors import bad_request
from llava.serve.safe_fetch import FetchPolicy, RemoteImageError, decode_base64, decode_image
from llava.serve.workers.frames import MESSAGES
from llava.serve.workers.messages import read_worker_messages

# The reference's limits and defaults.
MAX_NEW_TOKENS = 1024
DEFAULT_NEW_TOKENS = 256
GREEDY_BELOW = 0.001
SMALLEST_TOP_P = 1e-6  # 0, which pages can send, keeps the likeliest token alone
MAX_IMAGES = 64
# What the reference's worker answers, as if it were the model's words, when no position is left.
TOO_LONG = "Exceeds max token length. Please start a new conversation, thanks."


@dataclass(frozen=True)
class WorkerParams:
    """A request: the prompt as it was sent, the images in order, and the settings of the answer.

    messages: the dialog with its images, where one was sent in place of a prompt, which is empty then. raw:
    the prompt is to be continued as it stands, whatever the model's template is.
    """

    prompt: str
    images: tuple[Image.Image, ...]
    sampling: SamplingParams
    messages: Sequence[Mapping[str, Any]] | None = None
    raw: bool = False

    @classmethod
    def read(
        cls, params: Mapping[str, Any], policy: FetchPolicy | None = None, *, takes_messages: bool = False
    ) -> WorkerParams:
        """Read a request. takes_messages: see BaseWorker. Raises ServeError, UserError."""
        prompt, given, raw = params.get("prompt"), params.get(MESSAGES), params.get("raw") or False
        if given is not None and prompt is not None:
            raise bad_request("prompt and messages both came; send one of the two", param=MESSAGES)
        if given is not None and not takes_messages:
            raise bad_request("this worker takes no messages; send a prompt", param=MESSAGES)
        if given is None and (not isinstance(prompt, str) or not prompt):
            either = " (messages neither)" if takes_messages else ""
            raise bad_request(f"prompt is missing or no text{either}", param="prompt")
        if not isinstance(raw, bool):
            raise bad_request(f"raw is {str(raw)[:100]!r}; expected true or false", param="raw")
        images = _read_images(params.get("images"), policy or FetchPolicy())
        messages = None if given is None else read_worker_messages(given, images)
        if messages is None:
            _check_placeholders(str(prompt), images)
        temperature = _number(params, "temperature", 1.0)
        sampling = SamplingParams(
            temperature=temperature if temperature > GREEDY_BELOW else 0.0,
            top_p=max(_number(params, "top_p", 1.0), SMALLEST_TOP_P),
            max_new_tokens=min(int(_number(params, "max_new_tokens", DEFAULT_NEW_TOKENS)), MAX_NEW_TOKENS),
            stop=_stop(params.get("stop")),
        )
        return cls(prompt or "", images, sampling, messages, raw)

    def raw_prompt(self, *, start_end: bool) -> RawPrompt:
        """Return what the engine is asked. start_end: config.mm_use_im_start_end."""
        text = self.prompt
        if start_end:
            wrapped = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
            text = text.replace(DEFAULT_IMAGE_TOKEN, wrapped)
        return RawPrompt(text, self.images, continued=self.raw)


def _check_placeholders(prompt: str, images: Sequence[Image.Image]) -> None:
    """Raise ServeError unless a prompt has one placeholder for each image."""
    named = prompt.count(DEFAULT_IMAGE_TOKEN)
    if named != len(images):
        raise bad_request(
            f"the prompt has {named} {DEFAULT_IMAGE_TOKEN} but {len(images)} image(s) came with it",
            param="images",
        )


def _read_images(given: object, policy: FetchPolicy) -> tuple[Image.Image, ...]:
    """Decode base64 images; a name of a file or an address is none. Raises ServeError, ImageError."""
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise bad_request("images is no list of base64 texts", param="images")
    if len(given) > MAX_IMAGES:
        raise bad_request(f"{len(given)} images came; at most {MAX_IMAGES} are read", param="images")
    return tuple(_decode(index, one, policy) for index, one in enumerate(given))


def _decode(index: int, text: str, policy: FetchPolicy) -> Image.Image:
    name = f"images[{index}]"
    try:
        data = decode_base64(text, policy, name=name)
    except RemoteImageError as error:
        raise bad_request(str(error), param="images") from error
    return decode_image(data, policy, name=name)


def _number(params: Mapping[str, Any], name: str, default: float) -> float:
    value = params.get(name, default)
    if value is None:
        return default
    if isinstance(value, str):  # as old clients may send it
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise bad_request(f"{name} is {str(value)[:100]!r}; expected a number", param=name)
    return float(value)


def _stop(given: object) -> tuple[str, ...]:
    """Return the stop strings; the reference's programs send one, or none."""
    if given in (None, ""):
        return ()
    several = given if isinstance(given, list) else [given]
    texts = tuple(one for one in several if isinstance(one, str))
    if not len(texts) == len(several) <= 16:
        raise bad_request("stop is no text, nor a list of at most 16", param="stop")
    return tuple(one for one in texts if one)
