"""A rule of the house: one word for one thing, the field's word, in code, messages and documents."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = {".py", ".sh", ".json", ".md", ".ipynb", ".svg"}
FOLDERS = (
    "llava",
    "docs",
    "scripts",
    "playground/*.py",
    "playground/digits",
    "playground/smol",
    "tests/**/*.py",
)
FILES = [ROOT / "README.md"] + [
    path
    for folder in FOLDERS
    for start in sorted(ROOT.glob(folder))
    for path in ([start] if start.is_file() else sorted(start.rglob("*")))
    if path.suffix in ENDINGS and ".ipynb_checkpoints" not in path.parts and path != Path(__file__).resolve()
]

# what is not said -> the word that is
WORDS = {
    r"pictures?(?![a-z])": "image (a chart, plot or diagram where one is drawn)",
    r"\bimage marks?\b": "image token or placeholder",
    r"\bg(?:o|oes|oing|one) on from\b|\bwent on from\b": "resume, or continue",
    r"\banew\b": "start over, or again",
    r"\bdeal(?:s|t|ing)? (?:(?:it|them) )?out\b": "shard, or distribute",
    r"\bstrange\b": "unexpected, or unknown",
    r"\b(?:leav(?:e|es|ing)|left) (?:[\w-]+ ){0,3}away\b": "omit",
}

# the lines that may: keys of others' records, questions and captions that models are trained on or asked
ALLOWED = {
    "llava/train/records.py": ('"imgpaths", "picture"', '"pictures", "photo"'),
    "llava/model/conversion/parity.py": ('"What is shown in this picture?"',),
    "playground/digits/data.py": ('"pictures": len', "Describe the picture."),
    "playground/digits/questions.py": (
        "a picture of the digit",
        "What digit does the picture show?",
        "the digit in the picture",
        "the number in the picture",
        "Does the picture show a digit",
        "Which picture shows the larger",
    ),
    "tests/test_conversation.py": ('["expected"]["pictures"]',),
    "tests/model/test_harnesses.py": ("is written in this picture",),
    "tests/train/data/test_data_slips.py": ('"picture"',),
    "tests/train/recorded_training.py": ("Describe the picture.",),
}
# between two lines of a comment, a docstring, a list or a string in parts
_BREAK = re.compile(r' *"?[ \t]*\n[ \t]*(?:[#*>|]+[ \t]*|f?")?')


def _said(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, what it says, the word for it) for what is not said, also where a line break cuts it."""
    parts = _BREAK.split(text)
    starts = list(accumulate((len(one) + 1 for one in parts), initial=0))  # of each line, in the joined text
    joined = " ".join(parts)
    for pattern, word in WORDS.items():
        for found in re.finditer(pattern, joined, re.IGNORECASE):
            yield bisect_right(starts, found.start()), found.group(), word


def _without_allowed(text: str, allowed: tuple[str, ...]) -> str:
    for one in allowed:
        text = text.replace(one, "")
    return text


def test_each_thing_has_one_word() -> None:
    faults = []
    for path in FILES:
        name = str(path.relative_to(ROOT))
        text = _without_allowed(path.read_text(encoding="utf-8"), ALLOWED.get(name, ()))
        faults += [f"{name}:{line}: {said!r}; say {word}" for line, said, word in _said(text)]
    assert len(FILES) > 400
    assert not faults


def test_what_is_allowed_is_there() -> None:
    for name, lines in ALLOWED.items():
        assert not [one for one in lines if one not in (ROOT / name).read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "text",
    [
        "def picture(): ...",
        "PICTURES = ()",
        "# Two pictures.",
        "the image marks",
        "a run that goes on\n    # from its checkpoint",
        'raise E(\n    "start "\n    f"anew with --resume never"\n)',
        "they are dealt out",
        "strange keys",
        "leave the\nflag away",
    ],
)
def test_another_word_would_be_found(text: str) -> None:
    assert len(list(_said(text))) == 1


@pytest.mark.parametrize("text", ["a stranger", "leave it out", "training goes on", "a deal", "way out"])
def test_other_words_are_left_in_peace(text: str) -> None:
    assert not list(_said(text))
