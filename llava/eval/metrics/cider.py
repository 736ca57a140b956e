"""CIDEr-D, the rule of COCO captions and NoCaps: how near a caption is to people's, rare words first.

Vedantam, Zitnick, Parikh: CIDEr: Consensus-based Image Description Evaluation, CVPR 2015 (CIDEr-D: section
"CIDEr-D" of its appendix). As in the program of COCO's server a vector holds counts of n-grams, not shares,
times the logarithm of images over images with the n-gram. Its tokenizer is a Java program; the words here are
split by the same rules in a few lines, so that scores agree but for rare signs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Gram: TypeAlias = tuple[str, ...]
Vector: TypeAlias = dict[Gram, float]

ORDER = 4  # n-grams of one to four words
SIGMA = 6.0  # of the penalty for another length, in words
SCALE = 10.0
# "don't" is "do" and "n't", "man's" is "man" and "'s"; numbers and words with hyphens stay whole
_WORD = re.compile(
    r"\d+(?:[.,:]\d+)*(?![^\W\d_])|n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*"
)


def caption_words(text: str) -> list[str]:
    """Return the words of a caption in lower case, without signs."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D of each caption, from 0 to 10; the score of a set is their mean.

    references: for each caption the ones of people. Words are weighed by the images of this set. Raises
    ValueError where a caption has no reference.
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError("each caption needs at least one reference")
    told = [[_grams(caption_words(one)) for one in some] for some in references]
    images = Counter(gram for some in told for gram in {gram for one in some for gram in one})
    rarity = {gram: math.log(len(told)) - math.log(n) for gram, n in images.items()}
    usual = math.log(len(told)) if told else 0.0  # of an n-gram that no reference has
    scores = []
    for caption, some in zip(captions, told, strict=True):
        own = _grams(caption_words(caption))
        near = [_similarity(own, one, rarity, usual) for one in some]
        scores.append(SCALE * math.fsum(near) / len(near))
    return scores


def _grams(words: Sequence[str]) -> Counter[Gram]:
    """Return the n-grams of a text with their counts."""
    sizes = range(1, ORDER + 1)
    return Counter(tuple(words[at : at + n]) for n in sizes for at in range(len(words) - n + 1))


def _similarity(own: Counter[Gram], other: Counter[Gram], rarity: Vector, usual: float) -> float:
    """Return the mean over n of clipped cosines, times the penalty for the difference of lengths."""
    longer = _length(own) - _length(other)
    penalty = math.exp(-(longer**2) / (2 * SIGMA**2))
    total = 0.0
    for n in range(1, ORDER + 1):
        mine = _vector(own, n, rarity, usual)
        theirs = _vector(other, n, rarity, usual)
        norms = _norm(mine.values()) * _norm(theirs.values())
        if norms:
            common = math.fsum(
                min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in mine.items()
            )
            total += common / norms
    return penalty * total / ORDER


def _vector(grams: Counter[Gram], n: int, rarity: Vector, usual: float) -> Vector:
    return {gram: count * rarity.get(gram, usual) for gram, count in grams.items() if len(gram) == n}


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(one * one for one in values))


def _length(grams: Counter[Gram]) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 1)
