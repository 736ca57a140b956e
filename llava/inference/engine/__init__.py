"""The engine: many answers at once, step by step, behind one thread; the way servers ask a model."""

from llava.inference.dialog import Answer, Dialog, RawPrompt
from llava.inference.engine.alone import Alone
from llava.inference.engine.engine import Engine
from llava.inference.engine.requests import (
    AnyEngine,
    DoesNotFit,
    EngineDead,
    EngineError,
    EngineStats,
    Event,
    OutOfMemory,
    Piece,
    PromptTooLong,
    QueueFull,
    Ticket,
    Token,
    Usage,
    Waiting,
)

__all__ = [
    "Alone",
    "Answer",
    "AnyEngine",
    "Dialog",
    "DoesNotFit",
    "Engine",
    "EngineDead",
    "EngineError",
    "EngineStats",
    "Event",
    "OutOfMemory",
    "Piece",
    "PromptTooLong",
    "QueueFull",
    "RawPrompt",
    "Ticket",
    "Token",
    "Usage",
    "Waiting",
]
