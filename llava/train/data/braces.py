"""Names with braces, as shells write them: {a,b,c} and {000..003} stand for several names."""

from __future__ import annotations

import re
from itertools import islice

from llava.train.records import DataError
from llava.utils import import_optional, shortened

MOST_NAMES = 100_000
MOST_BRACES = 50  # of one name
_LONE = re.compile(r"\{([^{},]*)\}")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}", re.ASCII)


def expand_braces(name: str, *, lone: bool = False) -> list[str]:
    """Return the names that a name with braces stands for; one without stands for itself.

    lone: {a} is a, as in LLaVA-NeXT; otherwise it stays as it is, as in a shell. Raises DataError for a brace
    that is not closed, or never opened, and for more names than anybody means.
    """
    if "{" not in name and "}" not in name:
        return [name]
    braces = import_optional(
        "braceexpand", needed_for=f"the braces of {shortened(name)}", install="llava[train]"
    )
    if name.count("{") > MOST_BRACES:
        raise DataError(f"{shortened(name)} has more than {MOST_BRACES} braces; name a folder or a pattern")
    wide = any(_count(*numbers) > MOST_NAMES for numbers in _RANGE.findall(name))
    if lone:
        name = _LONE.sub(lambda found: found[0] if ".." in found[1] else found[1], name)
    try:
        names = [] if wide else list(islice(braces.braceexpand(name), MOST_NAMES + 1))
    except braces.UnbalancedBracesError:
        raise DataError(
            f"{shortened(name)} has a {{ that no }} closes, or a }} that no {{ opens; expected a name, or "
            "braces such as {a,b,c}"
        ) from None
    if wide or len(names) > MOST_NAMES:
        raise DataError(
            f"{shortened(name)} stands for more than {MOST_NAMES:,} names; name a folder or a pattern"
        )
    return names


def _count(first: str, last: str, step: str) -> int:
    """Return about how many numbers a range has; of numbers beyond twenty digits, enough to refuse them."""
    low, high, by = (int(one[:20] or 1) for one in (first, last, step))
    return abs(high - low) // max(1, abs(by))
