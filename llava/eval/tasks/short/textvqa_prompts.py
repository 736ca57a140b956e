"""The prompts of TextVQA: a question, and what an OCR system read, in the forms of the reference."""

from __future__ import annotations

import re

from llava.eval.tasks import prompts
from llava.utils import UserError, shortened

_OLD = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def question_of(prompt: str) -> str:
    """Return a prompt's question in lower case, with tokens before or behind it, or in the oldest form."""
    told = prompt.split("\n")
    if prompt.startswith("OCR tokens: ") and (found := _OLD.search(prompt)):
        return found[1].lower()
    return told[1 if prompt.startswith(prompts.OCR.strip()) and len(told) == 3 else 0].lower()


def checked_question_of(prompt: str) -> str:
    """Return the same of a prompt that has one of these forms; raises UserError for any other."""
    n, has_tokens = prompt.count("\n") + 1, prompts.OCR in prompt
    is_old = prompt.startswith("OCR tokens: ")
    if bool(_OLD.search(prompt)) if is_old else n == 3 if has_tokens and n == 3 else n == 2:
        return question_of(prompt)
    raise UserError(
        f"the prompt {shortened(repr(prompt), 120)} is none of TextVQA; expected a question and the line "
        "that asks for a single word or phrase, with OCR tokens between or before them"
    )
