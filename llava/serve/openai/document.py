"""The OpenAPI document of the server: what each endpoint takes and may answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llava.serve.openai.schema import ChatRequest, CompletionRequest, ResponseRequest

_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
# status -> when it is answered
_FAILURES = {
    400: "The request is not valid, or asks for what this server does not do; `param` names the field",
    401: "The API key is missing or wrong",
    403: "A server without a key was asked under a foreign name",
    404: "The model is not served here",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not application/json",
    429: "The queue is full, or the client asks too often; retry-after-ms says when to try again",
    431: "Address and headers are too long",
    500: "The server failed",
    503: "The engine has died, is being shut down, or has no memory left",
}
_READING = (401, 403, 404, 429, 431, 500, 503)


def failures(*, has_body: bool) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of an endpoint that are errors."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {
        status: {"description": text, "content": content}
        for status, text in _FAILURES.items()
        if has_body or status in _READING
    }


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of an endpoint that reads a request itself."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, *, with_key: bool) -> None:
    """Let the application show its document, with the schemas of the requests and the key it needs."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, schemas = models_json_schema(
                [(one, "validation") for one in (ChatRequest, CompletionRequest, ResponseRequest)],
                ref_template=_REF,
            )
            components = document.setdefault("components", {})
            components["schemas"] = {**components.get("schemas", {}), **schemas["$defs"], "Error": _ERROR}
            if with_key:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
