"""Captions, questions and answers about digits: pure text, nothing here sees an image."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from zlib import crc32

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.tasks.digits import is_right as is_right

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CAPTIONS = (
    "a handwritten {word}",
    "the digit {word}, written by hand",
    "a picture of the digit {word}",
    "someone wrote the digit {word}",
)

# Wordings of each kind of question. The two-image kinds hold two image tokens, in the order of the images.
ONE_IMAGE = {
    "which_digit": (
        "Which digit is this?",
        "What digit does the picture show?",
        "Read the digit in the picture.",
    ),
    "odd_even": (
        "Is this digit odd or even?",
        "Odd or even: what is the digit in the picture?",
        "Is the number in the picture an odd or an even one?",
    ),
    "larger_than_five": (
        "Is this digit larger than five?",
        "Does the picture show a digit larger than five?",
        "Is the number in the picture more than five?",
    ),
}
TWO_IMAGES = {
    "which_larger": (
        "<image>\n<image>\nWhich digit is larger, the first or the second?",
        "First: <image>\nSecond: <image>\nWhich picture shows the larger digit?",
    ),
    "sum": (
        "<image>\n<image>\nWhat is the sum of the two digits?",
        "First: <image>\nSecond: <image>\nAdd the two digits.",
    ),
}
TEXT_ONE = {
    "odd_even": ("Is {a} odd or even?", "Odd or even: what is {a}?", "Is the number {a} odd or even?"),
    "larger_than_five": ("Is {a} larger than five?", "Is {a} more than five?", "Is five less than {a}?"),
}
TEXT_TWO = {
    "which_larger": (
        "Which is larger, {a} or {b}?",
        "Which of {a} and {b} is the larger digit?",
        "Name the larger one of {a} and {b}.",
    ),
    "sum": ("What is {a} plus {b}?", "What is the sum of {a} and {b}?", "Add {a} and {b}."),
}
KINDS = (*ONE_IMAGE, *TWO_IMAGES, "text")


@dataclass(frozen=True)
class Question:
    """A question and its one right answer."""

    kind: str
    text: str
    answer: str


def caption(digit: int, wording: int) -> str:
    """Describe an image of `digit` in words."""
    return CAPTIONS[wording % len(CAPTIONS)].format(word=WORDS[digit])


def answer_one(kind: str, digit: int) -> str:
    """Answer a question about one digit."""
    if kind == "which_digit":
        return str(digit)
    if kind == "odd_even":
        return "odd" if digit % 2 else "even"
    return "yes" if digit > 5 else "no"


def answer_two(kind: str, first: int, second: int) -> str:
    """Answer a question about two images."""
    if kind == "sum":
        return str(first + second)
    if first == second:
        return "neither"
    return "the first" if first > second else "the second"


def ask_one(kind: str, digit: int, wording: int) -> Question:
    """Ask about one image; the image token is added by the caller, once for a dialog."""
    wordings = ONE_IMAGE[kind]
    return Question(kind, wordings[wording % len(wordings)], answer_one(kind, digit))


def ask_two(kind: str, first: int, second: int, wording: int) -> Question:
    """Ask about two images; the image tokens stand in the text."""
    wordings = TWO_IMAGES[kind]
    return Question(kind, wordings[wording % len(wordings)], answer_two(kind, first, second))


def text_questions() -> list[Question]:
    """List every question that needs no image: each fact about one or two digits in each wording."""
    questions = [
        Question("text", wording.format(a=a), answer_one(kind, a))
        for kind, wordings in TEXT_ONE.items()
        for wording in wordings
        for a in range(10)
    ]
    for kind, wordings in TEXT_TWO.items():
        for wording in wordings:
            for a in range(10):
                for b in range(10):
                    if kind == "sum":
                        questions.append(Question("text", wording.format(a=a, b=b), str(a + b)))
                    elif a != b:
                        questions.append(Question("text", wording.format(a=a, b=b), str(max(a, b))))
    return questions


def is_held_out(question: str) -> bool:
    """Tell whether a text question belongs to the test set (one in five, by a checksum of its text)."""
    return crc32(question.encode()) % 5 == 0


def split_text_questions() -> tuple[list[Question], list[Question]]:
    """Split the text questions into training and test; no test question occurs in training."""
    questions = text_questions()
    train = [question for question in questions if not is_held_out(question.text)]
    return train, [question for question in questions if is_held_out(question.text)]


def one_image_dialog(digit: int, rng: random.Random, kinds: int = len(ONE_IMAGE)) -> list[Question]:
    """Ask several kinds of questions about one image; the image token stands in the first."""
    turns = [ask_one(kind, digit, rng.randrange(99)) for kind in rng.sample(sorted(ONE_IMAGE), k=kinds)]
    return [replace(turns[0], text=f"{DEFAULT_IMAGE_TOKEN}\n{turns[0].text}"), *turns[1:]]


def two_image_dialog(first: int, second: int, rng: random.Random) -> list[Question]:
    """Ask both kinds of questions about two images; the image tokens stand in the first."""
    turns = [ask_two(kind, first, second, rng.randrange(99)) for kind in rng.sample(sorted(TWO_IMAGES), k=2)]
    second_text = turns[1].text.rpartition("\n")[2]
    return [turns[0], replace(turns[1], text=second_text)]
