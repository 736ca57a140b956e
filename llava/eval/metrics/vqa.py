"""The VQA rule: how answers are normalised, and how many of ten people have to agree. Official, and M4C's.

The official rule is that of vqaEval.py (GT-Vision-Lab/VQA), M4C's the one of TextVQA and of the
reference's submissions. Both replace words and punctuation alike; they differ in what comes before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
_ARTICLES = frozenset(["a", "an", "the"])
_PUNCTUATION = ';/[]"{}()=+\\_->@`,?!<'
# Published as a look-behind, which it is not: only the character behind a period counts.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_PERIODS_REMOVED = 32  # re.UNICODE is passed where the count stands
_COMMA_OFFICIAL = re.compile(r"(\d)(,)(\d)")
_COMMA_M4C = re.compile(r"(?<=\d)(,)+(?=\d)")

# Contractions that get their apostrophe back. Of those with two, each may be lacking.
_ONE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd "
    "how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock "
    "oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's "
    "something'd something'll that's there'd there're there's they'd they'll they're they've 'twas "
    "wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
    "who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've I'm "
    "I've"
)
_TWO = (
    "couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've "
    "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've y'all'll"
)


def _contractions() -> dict[str, str]:
    """Return the table of contractions: without an apostrophe -> with all of them."""
    table = {word.replace("'", ""): word for word in _ONE.split()}
    for word in _TWO.split():
        first, second, third = word.split("'")
        table |= {f"{first}{second}'{third}": word, f"{first}'{second}{third}": word}
    table |= {"yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've"}
    table |= {"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
    return table | {"somebody'd": "somebodyd"}  # the published table has it the wrong way round


_CONTRACTIONS = _contractions()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the official accuracy of an answer: the mean over people of min(others who say it / 3, 1).

    The prediction is always normalised; of the people's answers only the punctuation, if they differ.
    """
    people = [_one_line(one) for one in answers]
    if len(set(people)) > 1:
        people = [_punctuation(one, _COMMA_OFFICIAL) for one in people]
    said = vqa_answer(prediction)
    return _leave_one_out(said, people)


def vqa_answer(text: str) -> str:
    """Normalise a prediction as the official rule does."""
    return _words(_punctuation(_one_line(text), _COMMA_OFFICIAL))


def m4c_answer(text: str) -> str:
    """Normalise an answer as M4C does, which is what the reference submits to VQAv2 and VizWiz."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(_one_line(text), _COMMA_M4C))


def m4c_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return TextVQA's accuracy: as the official one, but both sides are normalised by `m4c_answer`."""
    return _leave_one_out(m4c_answer(prediction), [m4c_answer(one) for one in answers])


def _leave_one_out(said: str, people: Sequence[str]) -> float:
    if not people:
        raise ValueError("no answer of a person is given; expected ten")
    same = sum(one == said for one in people)
    credit = sum(min((same - (one == said)) / 3, 1.0) for one in people)
    return credit / len(people)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, comma: re.Pattern[str]) -> str:
    """Remove punctuation beside a space, or all of it if there is a number with commas; else put spaces."""
    out = text
    has_comma = comma.search(text) is not None
    for sign in _PUNCTUATION:
        beside = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if beside or has_comma else " ")
    return _PERIOD.sub("", out, count=_PERIODS_REMOVED)


def _words(text: str) -> str:
    """Write numbers as digits, omit articles, mend contractions."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
