"""CheckpointError, and how exceptions of other libraries become one: one sentence, without their advice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from llava.utils import UserError


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, incomplete or not what was asked for."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message (or its class), for messages of one sentence.

    torch's advice to switch `weights_only` off, which would let a file run code, is not passed on.
    """
    lines = str(error).strip().splitlines()
    if lines and "weights_only" in lines[0]:
        return "it is no torch file, or holds objects other than tensors"
    return lines[0][:200] if lines else type(error).__name__


def shown(value: object, longest: int = 60) -> str:
    """Return a value as it is written in Python, cut where it is too long for a sentence."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


# what is raised while something is built from values that make no sense
_REASONS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
)


@contextlib.contextmanager
def explained(path: str, file: str = "config.json") -> Iterator[None]:
    """Turn what building something from a JSON file raises into a CheckpointError that names the file.

    transformers checks some fields with classes of its own and fails on others with whatever Python says.
    """
    try:
        yield
    except CheckpointError:
        raise
    except _REASONS as error:
        raise CheckpointError(
            f"{path}: nothing can be built from its {file} ({reason_of(error)}); compare it with the "
            "original's, or copy it again."
        ) from error
    except Exception as error:  # huggingface_hub's class for fields of another type derives from none of them
        if "Validation" not in type(error).__name__:
            raise
        raise CheckpointError(
            f"{path}: its {file} has a field of another type ({reason_of(error)}); compare it with the "
            "original's, or copy it again."
        ) from error


def reason_of(error: BaseException) -> str:
    """Return the part of an exception's message that says what is wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Validation error") and len(lines) > 1:
        return lines[1].partition(": ")[2][:200] or lines[1][:200]
    if isinstance(error, KeyError):
        return f"unknown value {error.args[0]!r}"[:200] if error.args else "KeyError"
    return first_line(error)
