"""What a judge is told: built-in rules, rule files in the reference's format, and texts around answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llava.eval.judges.client import Message
from llava.eval.tasks.files import read_object
from llava.utils import UserError

SYSTEM = "You compare and grade answers. Be fair, be exact, and keep to the format that is asked for."
ROLE = "Assistant"

_FORMAT = (
    "Give each answer a score from 1 to 10, where 10 is best. Put the two scores alone on the first "
    "line, that of "
    f"{ROLE} 1 in front, with a space between them. Explain them from the second line on. Which answer comes "
    "first, and how long it is, must not matter."
)
_CONTEXT = (
    "The question is about an image. You cannot see it; the context describes it, and is to be taken as "
    "what the "
    f"image shows. {ROLE} 1 and {ROLE} 2 answered the question. "
)
_KINDS = {
    "conv": "Grade how helpful, relevant, correct and exact each answer is, measured by the context.",
    "detail": (
        "Grade how much of what the context describes each answer covers, how exactly, and whether it names "
        "things that are not there."
    ),
    "complex": "Grade how sound each answer's reasoning is, and whether the context bears out its premises.",
}
_TEXT = f"{ROLE} 1 and {ROLE} 2 answered the question. "
_TEXT_KINDS = {
    "default": "Grade how helpful, relevant, correct and detailed each answer is.",
    "coding": (
        "Grade the code of each answer: whether it does what is asked, whether it runs, how clear it is, "
        "and how "
        "well it is explained. Look for errors line by line."
    ),
    "math": (
        "Solve the problem yourself first. Then grade each answer by its result and by the steps that "
        "lead to "
        "it; a wrong result has a low score."
    ),
}

MM_VET_RULE = (
    "Grade how well a model's answer agrees with the right answer, from 0.0 (nothing is right) over 0.1, "
    "0.2 and "
    "so on to 1.0 (all is right). <AND> joins parts of the right answer that all have to be there, <OR> "
    "separates "
    "right answers of which one is enough. Other words for the same are right as well. Reply with the "
    "number alone."
)
CUSTOM_RULE = (
    "Grade how well a model's answer agrees with the right answer, from 0.0 (nothing is right) to 1.0 "
    "(all is "
    "right). Where several right answers are given, agreeing with one of them is enough. Other words for "
    "the same "
    "are right as well. Reply with the number alone."
)


@dataclass(frozen=True)
class Rule:
    """What a judge is told about a category of questions, and what the answering sides are called."""

    prompt: str
    role: str = ROLE


Rules = Mapping[str, Rule]


def built_in_rules() -> dict[str, Rule]:
    """Return the rules by category: of texts, of images, and of LLaVA-Bench."""
    about_images = {name: Rule(f"{_CONTEXT}{kind} {_FORMAT}") for name, kind in _KINDS.items()}
    about_texts = {name: Rule(f"{_TEXT}{kind} {_FORMAT}") for name, kind in _TEXT_KINDS.items()}
    bench = {f"llava_bench_{name}": rule for name, rule in about_images.items()}
    alone = {"mm_vet": Rule(MM_VET_RULE), "custom": Rule(CUSTOM_RULE)}
    return {**about_texts, **about_images, **bench, **alone}


def read_rules(path: Path | None) -> dict[str, Rule]:
    """Read a rule file: category -> {"role", "prompt"}; the built-in rules for None. Raises UserError."""
    if path is None:
        return built_in_rules()
    rules = {}
    for category, rule in read_object(path, {}).items():
        right = isinstance(rule, Mapping) and all(
            isinstance(rule.get(key), str) for key in ("role", "prompt")
        )
        if not right:
            raise UserError(
                f"{path}: the rule of {category!r} is {json.dumps(rule)[:80]}; expected an object with "
                "the texts "
                "'role' and 'prompt'"
            )
        assert isinstance(rule, Mapping)
        rules[category] = Rule(str(rule["prompt"]), str(rule["role"]))
    if not rules:
        raise UserError(f"{path} holds no rules; expected category -> role and prompt")
    return rules


def pair_prompt(question: str, answers: tuple[str, str], rule: Rule, context: str | None = None) -> str:
    """Return what a judge of two answers is asked, in the reference's layout."""
    parts = [] if context is None else [f"[Context]\n{context}\n\n"]
    parts.append(f"[Question]\n{question}\n\n")
    for number, answer in enumerate(answers, start=1):
        parts.append(f"[{rule.role} {number}]\n{answer}\n\n[End of {rule.role} {number}]\n\n")
    return "".join([*parts, f"[System]\n{rule.prompt}\n\n"])


def graded_prompt(question: str, expected: str, answer: str, rule: str) -> str:
    """Return what a judge of one answer beside the right one is asked."""
    return f"{rule}\n\n[Question]\n{question}\n\n[Right answer]\n{expected}\n\n[Model's answer]\n{answer}\n"


def messages(content: str) -> tuple[Message, ...]:
    """Return a question to a judge as messages."""
    return ({"role": "system", "content": SYSTEM}, {"role": "user", "content": content})
