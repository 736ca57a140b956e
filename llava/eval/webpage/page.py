"""The comparison page: a question under the other, the answers of all models beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from llava.eval.comparing.page import page_head, thumbnail
from llava.eval.tasks.base import JsonValue, Record
from llava.eval.tasks.files import check_rows
from llava.images import load_image
from llava.utils import UserError

NO_ANSWER = "no answer"
_BOLD = re.compile(r"\*\*(Assistant [12])\*\*")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 90rem; padding: 1rem }
body { color: #1b1f24; overflow-wrap: anywhere }
nav a { margin-right: .8rem }
article { border-top: 1px solid #d0d7de; padding: 1rem 0 }
img { max-width: min(28rem, 100%); display: block; margin: .5rem 0 }
pre { font: inherit; white-space: pre-wrap; margin: .3rem 0 }
.question { font-weight: 600 }
.answers { display: grid; gap: 1rem }
.answers { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)) }
.answers section { background: #f6f8fa; border-radius: .4rem; padding: .6rem .9rem; min-width: 0 }
h4 { margin: 0 } .note { color: #59636e; font-weight: 400 }
details { margin-top: .6rem } summary { cursor: pointer }
"""


def page_of(data: Mapping[str, JsonValue], image_folder: Path | None = None) -> str:
    """Return the page of a data.json. Everything that data or models say is escaped, scripts are forbidden.

    image_folder: where the images of questions are; they become part of the page. Raises UserError for JSON
    of another form.
    """
    if "questions" not in data:
        raise UserError("the JSON has no list 'questions'; expected what this program writes")
    questions = check_rows(data["questions"], {"answers": dict}, "'questions' of the JSON")
    categories: dict[str, list[Record]] = {}
    for one in questions:
        categories.setdefault(str(one.get("category", "")) or "questions", []).append(one)
    names = list(dict.fromkeys(name for one in questions for name in _texts(one, "answers")))
    title = f"Answers of {', '.join(names)}"
    parts = [page_head(title, _STYLE), "<nav>"]
    for place, (category, some) in enumerate(categories.items()):
        parts.append(f'<a href="#c{place}">{escape(category)} ({len(some):,})</a>')
    parts.append("</nav>\n")
    for place, (category, some) in enumerate(categories.items()):
        parts.append(f'<h2 id="c{place}">{escape(category)}</h2>\n')
        parts += [_article(one, names, image_folder) for one in some]
    return "".join(parts) + "</body></html>\n"


def _article(question: Record, names: Sequence[str], folder: Path | None) -> str:
    """Return one question: its image, its text, the answers beside each other, the reviews folded."""
    answers, reviews = _texts(question, "answers"), _texts(question, "evaluations")
    scores = question.get("scores")
    columns = "".join(
        f"<section><h4>{escape(name)}</h4>{_answer(answers.get(name))}</section>" for name in names
    )
    told = "".join(
        f"<details><summary>Review of {escape(name)}{_score(scores, name)}</summary>"
        f"<pre>{_bold(escape(text))}</pre></details>"
        for name, text in reviews.items()
    )
    return (
        f"<article><h3>{escape(str(question.get('id', '')))}</h3>{''.join(_image(question, folder))}"
        f'<pre class="question">{escape(str(question.get("question", "")))}</pre>'
        f'<div class="answers">{columns}</div>{told}</article>\n'
    )


def _bold(text: str) -> str:
    return _BOLD.sub(r"<strong>\1</strong>", text)


def _answer(text: str | None) -> str:
    if text is None:
        return f'<p class="note">{NO_ANSWER}</p>'
    return f"<pre>{escape(text)}</pre>" if text.strip() else '<p class="note">an empty answer</p>'


def _score(scores: JsonValue, name: str) -> str:
    """Return both scores of a review: of the answers to measure by, and of the model's."""
    pair = scores.get(name) if isinstance(scores, Mapping) else None
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        return ": no scores"
    return f": {escape(str(pair[0]))} to {escape(str(pair[1]))}"


def _image(question: Record, folder: Path | None) -> Iterator[str]:
    """Yield the image of a question as an element; a note for one that cannot be read."""
    if "image" not in question or folder is None:
        return
    try:
        yield f'<img alt="" src="{thumbnail(load_image(str(folder / str(question["image"]))))}">'
    except UserError as error:
        yield f'<p class="note">{escape(str(error))}</p>'


def _texts(question: Record, name: str) -> dict[str, str]:
    value = question.get(name)
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, Mapping) else {}
