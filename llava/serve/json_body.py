"""Reading the JSON of a request: bounded depth and number of parts, finite numbers, whole characters."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from starlette.requests import Request

from llava.serve.errors import ServeError, bad_request

MAX_DEPTH = 32
# Strings (an image is one), commas and brackets; this bounds the memory that a long list takes.
MAX_PARTS = 100_000
# An unfinished string matches to the end of the text: no place is looked at twice, whatever is sent.
_PARTS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)


async def read_json(request: Request) -> Any:
    """Return the JSON of a request. Raises ServeError: 415 for another content type, 400 for bad JSON.

    A web page cannot send this content type to another site without being asked, see docs/security.md.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = "the content type has to be application/json"
        raise ServeError(415, message, code="unsupported_media_type")
    return parse_json(await request.body())


def parse_json(body: bytes) -> Any:
    """Return what a JSON text holds. Raises ServeError (400) for all that is not plain JSON."""
    try:
        text = body.decode("utf-8")  # json.loads would guess UTF-16, which the scan below does not read
        _scan(text)
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _invalid("the body is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the body is not valid JSON: {error}") from error
    if "\\u" in text and not _is_encodable(value):
        raise _invalid("the body has half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def _invalid(message: str) -> Exception:
    return bad_request(message, code="invalid_json")


def _scan(text: str) -> None:
    """Raise ServeError for a text that is too deep or has too many parts, before anything is built of it."""
    depth = 0
    for count, match in enumerate(_PARTS.finditer(text)):
        found = text[match.start()]
        if found in "[{":
            depth += 1
        elif found in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise _invalid(f"the body is nested more than {MAX_DEPTH} deep")
        if count >= MAX_PARTS:
            raise _invalid(f"the body has more than {MAX_PARTS:,} strings, commas and brackets")


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _is_encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
