"""What a server answers with: the models it has, each with the engine that is asked for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llava.inference.engine import AnyEngine, EngineStats
from llava.serve.errors import ServeError, bad_request
from llava.serve.openai.schema import ChatRequest, CompletionRequest, ResponseRequest
from llava.serve.openai.settings import ServedModel


@dataclass(frozen=True)
class Served:
    """A model, and the engine that answers with it."""

    model: ServedModel
    engine: AnyEngine


class Models(Protocol):
    """The models of a server; all methods may wait for another program, and raise ServeError."""

    async def listed(self) -> dict[str, ServedModel]:
        """Return every name that a request may use, with the model that it means."""

    async def find(self, name: str) -> Served:
        """Return the model of a name; 404 for one that is not served."""

    async def check_health(self) -> None:
        """Raise ServeError (503) while nothing can be answered."""

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""

    def stats(self) -> EngineStats:
        """Return the numbers of all answers."""

    def close(self) -> None:
        """End all answers."""


class OneModel:
    """The model of this process."""

    def __init__(self, engine: AnyEngine, model: ServedModel) -> None:
        self.engine, self.model = engine, model
        self.stats: Callable[[], EngineStats] = engine.stats
        self.close: Callable[[], None] = engine.close

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self.engine.alive

    async def listed(self) -> dict[str, ServedModel]:
        """Return every name of the model."""
        return dict.fromkeys(self.model.names, self.model)

    async def find(self, name: str) -> Served:
        """Return the model. Raises ServeError (404) for another name."""
        if name not in self.model.names:
            raise not_served(name, self.model.names)
        return Served(self.model, self.engine)

    async def check_health(self) -> None:
        """Raise ServeError (503) when the engine has ended."""
        if not self.engine.alive:
            raise ServeError(503, "the engine has ended; start the server again", code="engine_dead")


def not_served(name: str, names: tuple[str, ...] | list[str]) -> ServeError:
    """Return the error for a model that is not served."""
    known = " or ".join(names[:20]) or "none: no worker is registered"
    message = f"the model {name[:200]!r} is not served here; expected {known}"
    return ServeError(404, message, code="model_not_found", param="model")


# What the protocol of controllers and workers has no field for: name -> values that ask for nothing.
_BEYOND_WORKERS: dict[str, tuple[object, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None,),
    "logit_bias": (None, {}),
    "include": (None, []),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "repetition_penalty": (None, 1),
    "seed": (None,),
}


def check_fields(asked: ChatRequest | CompletionRequest | ResponseRequest, model: ServedModel) -> None:
    """Raise ServeError (400) that names what the model's worker could not be asked."""
    if not model.by_worker:
        return
    for name, nothing in _BEYOND_WORKERS.items():
        if name in type(asked).model_fields and not _is_one_of(vars(asked)[name], nothing):
            raise bad_request(
                f"{name} is not supported for {model.names[0]!r}, which answers through a controller; its "
                "workers know temperature, top_p, max_tokens and stop; leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _is_one_of(value: object, several: tuple[object, ...]) -> bool:
    """Tell whether a value is one of several; 0 is not False here (0 logprobs are asked for)."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in several)
