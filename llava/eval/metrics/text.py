"""Rules that compare a text with right ones: exact, word F1, ANLS (edit distance), BLEU (n-grams)."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

ANLS_THRESHOLD = 0.5
BLEU_ORDER = 4

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOKENS = re.compile(r"\w+|[^\w\s]")


def plain(text: str) -> str:
    """Return a text without the differences that `exact` passes over: case, blanks, a period at its end."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def exact(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if a text is one of the answers, regardless of case, blanks and a period at its end."""
    return float(plain(prediction) in {plain(one) for one in answers})


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Return DocVQA's similarity to the nearest answer: 1 - edits / longer length, 0 below one half.

    Case and blanks around do not count (Biten et al. 2019, Scene Text Visual Question Answering).
    """
    return max((_similarity(prediction, one) for one in answers), default=0.0)


def _similarity(prediction: str, answer: str) -> float:
    said, right = (" ".join(one.strip().lower().split()) for one in (prediction, answer))
    longer = max(len(said), len(right))
    share = 1 - edits(said, right) / longer if longer else 1.0
    return share if share >= ANLS_THRESHOLD else 0.0


def edits(first: str, second: str) -> int:
    """Count the insertions, deletions and substitutions between two texts (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        before, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return SQuAD's word F1 with the nearest answer; case, punctuation and articles do not count."""
    return max((_overlap(_words(prediction), _words(one)) for one in answers), default=0.0)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    same = sum((Counter(said) & Counter(right)).values())
    return 2 * same / (len(said) + len(right))


def bleu(pairs: Iterable[tuple[str, Sequence[str]]]) -> float:
    """Return BLEU-4 of texts and their answers, between 0 and 1, over all of them together.

    Clipped n-gram precisions and the brevity penalty of the nearest length (Papineni et al. 2002), without
    smoothing; words and punctuation are tokens, in lower case.
    """
    hits, totals = [0] * BLEU_ORDER, [0] * BLEU_ORDER
    said_length = right_length = 0
    for prediction, answers in pairs:
        said = _TOKENS.findall(prediction.lower())
        right = [_TOKENS.findall(one.lower()) for one in answers]
        said_length += len(said)
        right_length += min((len(one) for one in right), key=lambda n: (abs(n - len(said)), n), default=0)
        for order in range(1, BLEU_ORDER + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for one in right:
                most |= _grams(one, order)
            hits[order - 1] += sum((_grams(said, order) & most).values())
            totals[order - 1] += max(len(said) - order + 1, 0)
    if not all(hits):
        return 0.0
    logs = sum(math.log(hit / total) for hit, total in zip(hits, totals, strict=True)) / BLEU_ORDER
    return math.exp(logs + min(0.0, 1 - right_length / said_length))


def _grams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))
