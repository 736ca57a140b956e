"""Rules that compare words: exact match, F1 of words (SQuAD's), and BLEU of a whole set of answers."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation)
_TOKEN = re.compile(r"\w+|[^\w\s]")
BLEU_ORDER = 4


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if the answer is one of the accepted ones, character by character, else 0.0."""
    return float(prediction in answers)


def plain_words(text: str) -> list[str]:
    """Return the words of a text as SQuAD counts them: lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_SIGNS)).split()


def word_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best F1 of words with an answer; two answers without a word agree.

    Raises ValueError where no answer is given.
    """
    if not answers:
        raise ValueError("no accepted answer is given; expected at least one")
    said = plain_words(prediction)
    return max(_f1(said, plain_words(one)) for one in answers)


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return float(not said and not wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Return the BLEU of a set of answers (Papineni et al., 2002), between 0 and 1, not smoothed.

    answers: for each prediction what is accepted. n-grams of one to four words are counted over the whole
    set; words are runs of letters and digits or one sign, in lower case. The reference length is the nearest,
    of two as near ones the shorter. Raises ValueError where an answer is lacking.
    """
    if len(predictions) != len(answers) or not all(answers):
        raise ValueError("each prediction needs at least one accepted answer")
    same, all_, length, wanted = [0] * BLEU_ORDER, [0] * BLEU_ORDER, 0, 0
    for prediction, accepted in zip(predictions, answers, strict=True):
        said = _tokens(prediction)
        others = [_tokens(one) for one in accepted]
        length += len(said)
        wanted += min((len(one) for one in others), key=lambda n: (abs(n - len(said)), n))
        for order in range(1, BLEU_ORDER + 1):
            grams = _grams(said, order)
            most: Counter[tuple[str, ...]] = Counter()
            for one in others:
                most |= _grams(one, order)
            same[order - 1] += (grams & most).total()
            all_[order - 1] += grams.total()
    if not all(same):
        return 0.0
    mean = math.fsum(math.log(hit / n) for hit, n in zip(same, all_, strict=True)) / BLEU_ORDER
    return math.exp(mean + min(0.0, 1 - wanted / length))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


def _grams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))
