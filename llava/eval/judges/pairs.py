"""Two answers a question, for a judge that scores both: what the reference's three review scripts read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.judges.judging import Item
from llava.eval.judges.wording import Rule, Rules, messages, pair_prompt
from llava.eval.tasks.base import JsonValue, Record
from llava.eval.tasks.files import ID, TEXT, read_lines
from llava.utils import UserError, shortened

COCO_PREFIX = "COCO_val2014_"  # some question files name an image with it, the context without


@dataclass(frozen=True)
class Style:
    """How a set of pairs is judged. prefix: of the categories' names; context: reads what stands for images.

    falls_back: a category without a rule takes "default".
    """

    prefix: str = ""
    context: Callable[[Record, str], str] | None = None
    falls_back: bool = False


def _captions(row: Record, where: str) -> str:
    """Return the caption of LLaVA-Bench's context: one text, or a list of them."""
    return _lines(row.get("caption"), where, "caption")


def _captions_and_boxes(row: Record, where: str) -> str:
    """Return the captions and boxes of the COCO context."""
    boxes = row.get("instances")
    if not isinstance(boxes, Sequence) or not all(
        isinstance(one, Mapping) and "bbox" in one for one in boxes
    ):
        raise UserError(f"{where} has no list 'instances' of objects with 'category' and 'bbox'")
    named = [f"{one.get('category')}: {one['bbox']}" for one in boxes if isinstance(one, Mapping)]
    return "\n\n".join([_lines(row.get("captions"), where, "captions"), "\n".join(named)])


def _lines(value: JsonValue, where: str, name: str) -> str:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, Sequence) or not lines or not all(isinstance(one, str) for one in lines):
        raise UserError(
            f"{where} has no {name!r}; expected a text, or a list of texts, that describes the image"
        )
    return "\n".join(str(one) for one in lines)


TEXT_STYLE = Style(falls_back=True)
BENCH_STYLE = Style(prefix="llava_bench_", context=_captions)
VISUAL_STYLE = Style(context=_captions_and_boxes)


def by_question(rows: Sequence[Record], where: str | Path) -> dict[str | int, Record]:
    """Return answers by question_id; raises UserError for two of one question."""
    found: dict[str | int, Record] = {}
    for row in rows:
        key = row.get("question_id")
        if not isinstance(key, str | int) or not isinstance(row.get("text"), str):
            raise UserError(f"{where}: an answer lacks 'question_id' or 'text': {shortened(row, 120)}")
        if key in found:
            raise UserError(f"{where} answers question {shortened(key, 60)} twice; keep one of them")
        found[key] = row
    return found


def read_context(path: Path, style: Style) -> dict[str, str]:
    """Read what stands for the images, by the image's name."""
    assert style.context is not None
    rows = read_lines(path, {"image": TEXT})
    return {str(row["image"]): style.context(row, f"{path}, image {row['image']}") for row in rows}


def pair_items(
    questions: Sequence[Record],
    answers: tuple[Mapping[str | int, Record], Mapping[str | int, Record]],
    rules: Rules,
    *,
    style: Style,
    context: Mapping[str, str] | None = None,
) -> list[Item]:
    """Return what a judge is asked about each question that both sides answered, with the usual fields."""
    items = []
    for number, question in enumerate(questions, start=1):
        key = question["question_id"]
        assert isinstance(key, str | int)
        first, second = (side.get(key) for side in answers)
        if first is None or second is None:
            continue
        category = f"{style.prefix}{question.get('category', '')}"
        rule = rule_of(category, rules, falls_back=style.falls_back)
        shown = None if context is None else _context_of(question, context)
        texts = (str(first["text"]), str(second["text"]))
        row: Record = {
            "id": number,
            "question_id": key,
            "answer1_id": first.get("answer_id", key),
            "answer2_id": second.get("answer_id", key),
            "category": category,
        }
        items.append(Item(key, messages(pair_prompt(str(question["text"]), texts, rule, shown)), row))
    return items


def read_questions(path: Path, style: Style) -> list[Record]:
    """Read the questions: question_id, text, and where it is needed category and image."""
    fields = {"question_id": ID, "text": TEXT}
    if not style.falls_back:
        fields |= {"category": TEXT, "image": TEXT}
    return read_lines(path, fields)


def rule_of(category: str, rules: Rules, *, falls_back: bool) -> Rule:
    """Return the rule of a category; raises UserError that lists those there are."""
    rule = rules.get(category) or (rules.get("default") if falls_back else None)
    if rule is None:
        raise UserError(
            f"no rule for questions of the category {category!r}; the rules are for "
            f"{', '.join(sorted(rules))}: "
            "add it to the file of --rule"
        )
    return rule


def _context_of(question: Record, context: Mapping[str, str]) -> str:
    image = str(question.get("image"))
    image = image if image in context else image.removeprefix(COCO_PREFIX)
    if image not in context:
        raise UserError(
            f"question {shortened(question['question_id'], 60)} is about {image}, of which the context "
            "file says "
            "nothing; are the two of one benchmark?"
        )
    return context[image]
