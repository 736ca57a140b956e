"""Names with braces, as shells write them: {a,b,c} and {000..003} stand for several names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from llava.train.records import DataError
from llava.utils import shortened

MOST_NAMES = 100_000
MOST_BRACES = 50  # of one name
_NUMBERS = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?", re.ASCII)
_LETTERS = re.compile(r"[a-z]\.\.[a-z]|[A-Z]\.\.[A-Z]", re.ASCII)


def expand_braces(name: str, *, lone: bool = False) -> list[str]:
    """Return the names that a name with braces stands for; one without stands for itself.

    lone: {a} is a, as in LLaVA-NeXT; otherwise it stays as it is, as in a shell. Raises DataError for a brace
    that is not closed, or never opened, and for more names than anybody means.
    """
    if name.count("{") > MOST_BRACES:
        raise DataError(f"{shortened(name)} has more than {MOST_BRACES} braces; name a folder or a pattern")
    return _expand(name, name, lone)


def _expand(text: str, whole: str, lone: bool) -> list[str]:
    choices: list[Sequence[str]] = []
    count = 1
    for piece in _pieces(text, whole):
        choices.append(_choices(piece, whole, lone))
        count *= len(choices[-1])
        if count > MOST_NAMES:
            raise DataError(
                f"{shortened(whole)} stands for more than {MOST_NAMES:,} names; name a folder or a pattern"
            )
    return ["".join(parts) for parts in itertools.product(*choices)]


def _pieces(text: str, whole: str) -> Iterator[str]:
    """Yield a text in pieces: what stands between braces, and each outermost pair with all in it."""
    depth = start = 0
    for place, character in enumerate(text):
        if character == "{":
            if depth == 0:
                yield text[start:place]
                start = place
            depth += 1
        elif character == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                yield text[start : place + 1]
                start = place + 1
    if depth:
        wrong = "a } that no { opens" if depth < 0 else "a { that no } closes"
        raise DataError(f"{shortened(whole)} has {wrong}; expected a name, or braces such as {{a,b,c}}")
    yield text[start:]


def _choices(piece: str, whole: str, lone: bool) -> Sequence[str]:
    """Return the texts that a piece stands for."""
    if not piece.startswith("{"):
        return [piece]
    inner = piece[1:-1]
    if numbers := _NUMBERS.fullmatch(inner):
        return _numbers(whole, *numbers.groups())
    if _LETTERS.fullmatch(inner):
        first, last = ord(inner[0]), ord(inner[-1])
        step = 1 if first <= last else -1
        return [chr(one) for one in range(first, last + step, step)]
    parts = _split(inner)
    found = [name for part in parts for name in _expand(part, whole, lone)]
    return found if len(parts) > 1 or lone else [f"{{{name}}}" for name in found]


def _split(inner: str) -> list[str]:
    """Split at the commas that stand in no inner pair of braces."""
    parts, depth = [""], 0
    for character in inner:
        depth += (character == "{") - (character == "}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _numbers(whole: str, first: str, last: str, step: str | None) -> list[str]:
    """Return the numbers of a range, as wide as the wider end where one of the two begins with 0."""
    start, stop = int(first), int(last)
    by = max(1, abs(int(step or 1)))
    if abs(stop - start) // by >= MOST_NAMES:
        raise DataError(
            f"{shortened(whole)} stands for more than {MOST_NAMES:,} names; name a folder or a pattern"
        )
    padded = any(len(one.lstrip("-")) > 1 and one.lstrip("-")[0] == "0" for one in (first, last))
    width = max(len(first), len(last)) if padded else 0
    numbers = range(start, stop + 1, by) if start <= stop else range(start, stop - 1, -by)
    return [f"{number:0{width}d}" for number in numbers]
