"""The questions that two models answer with another success, with their images, as one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape

from PIL import Image

from llava.eval.comparing.pairs import Comparison, Pair, comparison_text
from llava.eval.tasks.base import Ask
from llava.images import as_image
from llava.utils import UserError

EDGE = 448  # pixels of the longer edge of an image on the page
QUALITY = 80
SHOWN = 300  # flipped questions on a page

_STYLE = f"""
body {{ font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }}
body {{ color: #1b1f24 }}
article {{ display: flex; gap: 1rem; border-top: 1px solid #d0d7de; padding: 1rem 0; flex-wrap: wrap }}
figure {{ margin: 0; flex: 0 1 {EDGE}px }} img {{ max-width: 100%; display: block; margin-bottom: .3rem }}
section {{ flex: 1 1 24rem; min-width: 0 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 }}
dt {{ font-weight: 600; margin-top: .5rem }} dd {{ margin: 0 }}
.right {{ background: #dafbe1 }} .wrong {{ background: #ffebe9 }} .note {{ color: #59636e }}
"""


def page_head(title: str, style: str) -> str:
    """Return a page up to its heading. It runs no script and loads nothing from elsewhere."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{style}</style></head><body>
<h1>{escape(title)}</h1>
"""


def page_of(found: Comparison, shown: int = SHOWN) -> str:
    """Return the page. Everything that comes from data or models is escaped, scripts are forbidden."""
    title = f"{found.first.result['task']}: {found.first.name} and {found.second.name}"
    flips = found.flips
    worse = [one for one in flips if one.change < 0]
    better = [one for one in reversed(flips) if one.change > 0]
    parts = [page_head(title, _STYLE)]
    parts += [f"<p>{escape(line)}</p>\n" for line in comparison_text(found)]
    for heading, pairs in (
        (f"Worse with {found.second.name}", worse),
        (f"Better with {found.second.name}", better),
    ):
        parts.append(f"<h2>{escape(heading)}: {len(pairs):,}</h2>\n")
        parts += [_article(found, one) for one in pairs[:shown]]
        if len(pairs) > shown:
            parts.append(f'<p class="note">{len(pairs) - shown:,} more are not shown.</p>\n')
    return "".join(parts) + "</body></html>\n"


def _article(found: Comparison, pair: Pair) -> str:
    """Return one question: images, prompt, what was expected, both answers."""
    prompt = "" if pair.ask is None else f"<dt>Prompt</dt><dd><pre>{escape(pair.ask.prompt)}</pre></dd>"
    answers = "".join(
        f'<dt>{escape(name)}</dt><dd class="{_class(credit)}"><pre>{escape(text)}</pre></dd>'
        for name, text, credit in (
            (found.first.name, pair.first.prediction, pair.first.credit),
            (found.second.name, pair.second.prediction, pair.second.credit),
        )
    )
    return (
        f"<article><figure>{''.join(_images(pair.ask))}</figure><section><h3>{escape(str(pair.first.id))}</h3>"
        f"<dl>{prompt}<dt>Expected</dt><dd><pre>{escape(pair.first.expected)}</pre></dd>{answers}</dl>"
        "</section></article>\n"
    )


def _class(credit: float | None) -> str:
    return "right" if credit is not None and credit >= 0.5 else "wrong"


def _images(ask: Ask | None) -> Iterator[str]:
    """Yield the images of a question as elements; a note for one that cannot be read."""
    if ask is None:
        yield '<p class="note">the data of the task is not there</p>'
        return
    try:
        for source in ask.sources():
            yield f'<img alt="" src="{thumbnail(as_image(source))}">'
    except UserError as error:
        yield f'<p class="note">{escape(str(error))}</p>'


def thumbnail(image: Image.Image, edge: int = EDGE) -> str:
    """Return an image, made smaller, as the address that holds all of it."""
    small = image.copy()
    small.thumbnail((edge, edge))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
