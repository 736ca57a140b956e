"""The requests that are taken, and what is refused because it cannot be done; harmless fields are ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava.serve.errors import ServeError, bad_request

MAX_N = 8
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64  # of one /v1/completions request
_INT64 = 2**63

Text = Annotated[str, Field(max_length=4_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=500)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Url = Annotated[str, Field(description="data:image/...;base64,... or an http(s) address")]


class Strict(BaseModel):
    """What is sent has the type that is asked for; a number in quotes is none. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Sampling(Strict):
    """How answers are chosen; null is the same as nothing."""

    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0 is greedy; 1 where none is given"
    )
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=_INT64, description="0 and -1 are off")
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)


class StreamOptions(Strict):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class ImageUrl(Strict):
    """An image; `detail` has no effect."""

    url: Url
    detail: Literal["auto", "low", "high", "original"] | None = None


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class ImagePart(Strict):
    """An image between pieces of text."""

    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalPart(Strict):
    """A piece of an earlier answer in which a model refused."""

    type: Literal["refusal"]
    refusal: Text


class Message(Strict):
    """A turn of a dialog."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Annotated[TextPart | ImagePart | RefusalPart, Field(discriminator="type")]]


class ChatRequest(Sampling):
    """A request to /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=2000)
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    max_tokens: int | None = Field(default=None, ge=1, lt=_INT64)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=_INT64)
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=1024
    )


class CompletionRequest(Sampling):
    """A request to /v1/completions: text goes to the model as it is, without a template."""

    model: str
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    max_tokens: int | None = Field(default=None, ge=1, lt=_INT64)
    stop: Stop | Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=1024
    )


class InputText(Strict):
    """A piece of text of /v1/responses; what the model said before comes back as output_text."""

    type: Literal["input_text", "output_text"]
    text: Text


class InputImage(Strict):
    """An image of /v1/responses; `detail` has no effect."""

    type: Literal["input_image"]
    image_url: Url
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputMessage(Strict):
    """A turn of /v1/responses."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Annotated[InputText | InputImage, Field(discriminator="type")]]


class ResponseRequest(Strict):
    """A request to /v1/responses; nothing is stored, so each request brings the whole dialog."""

    model: str
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=2000)]
    instructions: Text | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_output_tokens: int | None = Field(default=None, ge=1, lt=_INT64)
    stream: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    include: list[str] | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


# ---- what cannot be done ----


def _given(value: object) -> bool:
    return value not in (None, [], {}, "")


def _beyond_none(value: object) -> bool:
    return value not in (None, "none", "auto")


def _other_than_text(value: object) -> bool:
    return value not in (None, {}, {"type": "text"})


def _beyond_text(value: object) -> bool:
    return value not in (None, [], ["text"])


def _nonzero(value: object) -> bool:
    return value not in (None, 0, False)


def _true(value: object) -> bool:
    return value not in (None, False)


def _text_format(value: object) -> bool:
    return isinstance(value, dict) and _other_than_text(value.get("format"))


def _beyond_one(value: object) -> bool:
    return value not in (None, 1)


def _truncates(value: object) -> bool:
    return value not in (None, "disabled")


def _false(value: object) -> bool:
    return value is False


Check = Callable[[object], bool]
_COMMON: dict[str, Check] = {
    "tools": _given,
    "tool_choice": _beyond_none,
    "audio": _given,
    "web_search_options": _given,
    "prediction": _given,
    "presence_penalty": _nonzero,
    "frequency_penalty": _nonzero,
    "use_beam_search": _true,
    "stop_token_ids": _given,
    "min_tokens": _nonzero,
    "ignore_eos": _true,
    "structured_outputs": _given,
    "guided_json": _given,
    "guided_regex": _given,
    "guided_choice": _given,
    "guided_grammar": _given,
    "include_stop_str_in_output": _true,
    "skip_special_tokens": _false,
    "allowed_token_ids": _given,
    "bad_words": _given,
    "prompt_logprobs": _given,
    "truncate_prompt_tokens": _given,
    "chat_template": _given,
    "add_generation_prompt": _false,
    "continue_final_message": _true,
}
# Fields whose meaning would be lost: name -> whether a value asks for something.
REFUSED: dict[type[Strict], dict[str, Check]] = {
    ChatRequest: {
        **_COMMON,
        "functions": _given,
        "function_call": _beyond_none,
        "response_format": _other_than_text,
        "modalities": _beyond_text,
    },
    CompletionRequest: {
        **_COMMON,
        "response_format": _other_than_text,
        "suffix": _given,
        "echo": _true,
        "best_of": _beyond_one,
    },
    ResponseRequest: {
        **_COMMON,
        "text": _text_format,
        "previous_response_id": _given,
        "conversation": _given,
        "prompt": _given,
        "background": _true,
        "truncation": _truncates,
    },
}

# What one endpoint takes and another one does not would be lost there as well: name -> values that ask for
# nothing. Everything beside these settings is harmless.
_NOTHING: tuple[object, ...] = (None, False, "", [], {})
_ELSEWHERE: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("messages", "prompt", "input", "instructions", "include"), _NOTHING),
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens"), _NOTHING),
    **dict.fromkeys(("seed", "top_logprobs"), (None,)),
    **dict.fromkeys(("stop", "logprobs", "logit_bias"), _NOTHING),
    **{"n": (None, 1), "top_k": (None, 0, -1), "min_p": (None, 0), "repetition_penalty": (None, 1)},
}
# What the length of an answer is called, the newest name first.
_LENGTHS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


Model = TypeVar("Model", bound=Strict)


def read_request(kind: type[Model], data: object) -> Model:
    """Check a request. Raises ServeError (400) that names the field and what was expected."""
    if not isinstance(data, dict):
        raise bad_request('the body is no JSON object; expected {"model": ..., ...}', code="invalid_json")
    for name, asks in REFUSED[kind].items():
        if asks(data.get(name)):
            raise _unsupported(name)
    _refuse_settings_of_others(kind, data)
    _refuse_roles_and_parts(data)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        # of the alternatives that a value could be, the one that came furthest is the one that was meant
        # (one whose values have the right kind before one that went deeper and met another kind)
        nearest = max(found, key=lambda one: (not _is_kind(one["type"]), _depth(_dotted(one["loc"]))))
        where = _dotted(nearest["loc"])
        code = "missing_required_parameter" if nearest["type"] == "missing" else "invalid_value"
        told = nearest["msg"]
        if _is_kind(nearest["type"]):
            kinds = [one["msg"] for one in found if _is_kind(one["type"]) and _dotted(one["loc"]) == where]
            told = _one_of(kinds)
        raise bad_request(f"{where}: {told}", param=where or None, code=code) from error


_KINDS = ("string_type", "list_type", "int_type", "float_type", "bool_type", "dict_type", "model_type")
_SHOULD = "Input should be "


def _is_kind(complaint: str) -> bool:
    """Tell whether pydantic complains of the kind of a value, and has not looked into it."""
    return complaint in _KINDS or complaint == "model_attributes_type"


def _one_of(complaints: Sequence[str]) -> str:
    """Join complaints of alternatives about the kind of one value, without names of classes."""
    kinds = [one.removeprefix(_SHOULD).partition(" or instance of ")[0] for one in complaints]
    return _SHOULD + " or ".join(dict.fromkeys(kinds))


def _unsupported(name: str, detail: str = "") -> ServeError:
    message = f"{name} is not supported by this server{detail}; leave it out"
    return bad_request(message, param=name, code="unsupported_parameter")


def _refuse_settings_of_others(kind: type[Strict], data: Mapping[str, Any]) -> None:
    """Name the settings of other endpoints, which would be ignored, and what this one calls the length."""
    for name, nothing in _ELSEWHERE.items():
        if name in kind.model_fields or data.get(name) in nothing:
            continue
        if not name.startswith("max_"):
            raise _unsupported(name, " at this endpoint")
        own = next(one for one in _LENGTHS if one in kind.model_fields)
        message = f"{name} is not what this endpoint calls the length of an answer; use {own}"
        raise bad_request(message, param=name, code="unsupported_parameter")


_ROLES = ("tool", "function")
_PARTS = ("input_audio", "file", "input_file", "video_url", "function_call", "function_call_output")


def _refuse_roles_and_parts(data: Mapping[str, Any]) -> None:
    """Name tools, audio and files within messages; a check of types would only list what is allowed."""
    for field in ("messages", "input"):
        turns = data.get(field)
        for index, turn in enumerate(turns if isinstance(turns, list) else []):
            if not isinstance(turn, dict):
                continue
            where = f"{field}[{index}]"
            if turn.get("role") in _ROLES:
                raise _unsupported(f"{where}.role", f" as {turn['role']!r}")
            if _given(turn.get("tool_calls")) or _given(turn.get("function_call")):
                raise _unsupported(f"{where}.tool_calls")
            if turn.get("type") in _PARTS:
                raise _unsupported(f"{where}.type", f" as {turn['type']!r}")
            content = turn.get("content")
            for number, part in enumerate(content if isinstance(content, list) else []):
                if isinstance(part, dict) and part.get("type") in _PARTS:
                    raise _unsupported(f"{where}.content[{number}].type", f" as {part['type']!r}")


def _dotted(place: tuple[int | str, ...]) -> str:
    """Write a place in a request the way programs do, without pydantic's names of alternatives."""
    text = ""
    before: int | str = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not (step in _TYPES or not step.isidentifier() or (isinstance(before, int) and step in _TAGS)):
            text += f".{step}" if text else step
        before = step
    return text


def _depth(where: str) -> int:
    return where.count(".") + where.count("[")


# What pydantic puts into a place for each alternative of a union: the name of a type, or the tag of a part.
_TYPES = {"str", "int", "float", "list"}
_TAGS = {"text", "image_url", "refusal", "input_text", "output_text", "input_image"}
