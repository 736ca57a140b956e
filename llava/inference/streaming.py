"""Token ids become text piece by piece: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a tokenizer's decode puts where bytes of a character are still missing.
_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so that the last one stands whole in the text of so many ids.
_TAIL = 8
# Of a long answer, only about so many ids at its end are decoded again at each step.
_OPEN = 256
# How many ids before them are decoded as well, since a text's first id may be decoded differently.
CONTEXT_IDS = 32
# What clean_up_tokenization_spaces shortens by its blanks (transformers' clean_up_tokenization).
_CLEANED_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class TextStream:
    """Decodes a growing list of ids; its pieces joined are their decoded text up to a stop string, stripped.

    before: the last ids of a text that is continued; the text behind it is not stripped then, and the blank
    stays that decoding takes from a first word.

    Held back until it is certain: an unfinished UTF-8 character, the beginning of a stop string, blanks at
    the end (answers are stripped as in the reference), and, for tokenizers that drop blanks at punctuation
    (clean_up_tokenization_spaces), what may become such a place.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        *,
        before: Sequence[int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.before = before
        self.ids: list[int] = []
        self.text = ""  # all pieces so far
        self.stopped = False  # a stop string came
        self._head = ""  # the text of the first ids ...
        self._n_head = 0  # ... which are so many
        self._settle_at = _OPEN
        self._uncertain = _CLEANED_UP if getattr(tokenizer, "clean_up_tokenization_spaces", False) else ()

    def put(self, token: int) -> str:
        """Take the next id; return the text that has become certain ("" when none has)."""
        self.ids.append(token)
        return self._advance(last=False)

    def hold(self, token: int) -> bool:
        """Take the next id without asking for text; tell whether a stop string stands in the text now.

        The whole text is only decoded when its end may complete a stop string; `end` brings the text.
        """
        self.ids.append(token)
        if not self.stop:
            return False
        tail = self.tokenizer.decode(self.ids[-_TAIL:], skip_special_tokens=True)
        if not any(one[-1] in tail or one[-1].isspace() for one in self.stop):
            return False
        return first_stop(self._decoded(), self.stop) is not None

    def end(self) -> str:
        """Return what was held back, after the last id."""
        return self._advance(last=True)

    def _advance(self, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._decoded()
        cut = first_stop(text, self.stop)
        if cut is not None:
            text, self.stopped = text[:cut], True
        elif not last:
            text = self._certain(text)
        if self.before is None:
            text = text.strip()
        if not text.startswith(self.text):  # decoding changed what was shown; nothing can be taken back
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece

    def _decoded(self) -> str:
        """Return the text of all ids."""
        if len(self.ids) >= self._settle_at:
            self._settle_at = len(self.ids) + _OPEN // 2
            self._settle(len(self.ids) - _OPEN // 2)
        return self._head + self._behind(self._n_head)

    def _behind(self, start: int) -> str:
        """Return the text of the ids from `start` on, as it stands in the whole text."""
        if start == 0:
            return self._text_of(self.ids)
        context = self.ids[max(0, start - CONTEXT_IDS) : start]
        return self._after(context, self.ids[start:])

    def _after(self, context: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text of ids as it stands behind others."""
        before = self.tokenizer.decode(list(context), skip_special_tokens=True)
        both = self.tokenizer.decode([*context, *ids], skip_special_tokens=True)
        if not both.startswith(before):  # these ids complete its last character
            before = before.rstrip(_REPLACEMENT)
        return both[len(before) :]

    def _text_of(self, ids: Sequence[int]) -> str:
        """Return the text of the first ids: behind the text that they continue, or alone."""
        if self.before is None:
            return self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return self._after(self.before, ids)

    def _settle(self, n_head: int) -> None:
        """Keep the text of the first ids, if the rest decodes behind it to what it is in the whole text."""
        head, whole = self._text_of(self.ids[:n_head]), self._text_of(self.ids)
        if not head.endswith(_REPLACEMENT) and head + self._behind(n_head) == whole:
            self._head, self._n_head = head, n_head

    def _certain(self, text: str) -> str:
        """Return the part of an unfinished text that later tokens cannot change or declare a stop string."""
        text = text.rstrip(_REPLACEMENT)
        if self._uncertain and self._ends_in_blank():
            return self.text
        for endings in (self.stop, self._uncertain):
            held = max((overlap(text, one) for one in endings), default=0)
            text = text[: len(text) - held]
        return text

    def _ends_in_blank(self) -> bool:
        """Tell whether the text ended in a blank before it was cleaned up."""
        raw = self.tokenizer.decode(
            self.ids[-_TAIL:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return raw.endswith(" ")


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the earliest stop string begins, or None."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return min(places, default=None)


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
