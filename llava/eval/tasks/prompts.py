"""The lines that benchmarks add to a question. Scores depend on each character of them."""

from __future__ import annotations

from collections.abc import Sequence

# The reference's own.
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
OCR = "Reference OCR token: "
# Of the benchmarks that the reference has no program for.
CAPTION = "Provide a one-sentence caption for the provided image."
YES_NO = "Please answer yes or no."

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lines(*parts: str) -> str:
    """Return a prompt of one line a part."""
    return "\n".join(parts)


def short_answer(question: str) -> str:
    """Ask for a word or phrase, as VQAv2, GQA, POPE and MME are asked."""
    return lines(question, SHORT)


def options(choices: Sequence[str]) -> list[str]:
    """Return a line for each choice: `A. a dog`."""
    return [f"{letter}. {one}" for letter, one in zip(LETTERS, choices, strict=False)]


def choice(question: str, choices: Sequence[str]) -> str:
    """Ask for the letter of a choice, as SEED-Bench is asked."""
    return lines(question, *options(choices), LETTER)
