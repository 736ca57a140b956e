"""Reading README.md and docs/ for the tests: links, headings, code blocks and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

# A comment in front of a block says what is known about it: it is run by a test (run), it needs the model of
# the quickstart (quickstart), it needs a GPU and published weights (7b), it needs a network (network).
MARKS = ("run", "quickstart", "7b", "network")

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- (\w+) -->$")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, first line number, language, mark ("" for none) and text."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced code blocks of a page."""
    mark, start, language, lines = "", 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if start:
            if fence:
                yield Block(page, start, language, mark, "\n".join(lines) + "\n")
                mark, start = "", 0
            else:
                lines.append(line)
        elif fence:
            start, language, lines = number, fence.group(1), []
        elif found := _MARK.match(line):
            mark = found.group(1)
        elif line.strip():
            mark = ""


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def links(page: Path) -> list[str]:
    """List the targets of a page's links and images."""
    return _LINK.findall(prose(page)) + re.findall(r'(?:src|href)="([^"]+)"', prose(page))


def anchors(page: Path) -> set[str]:
    """List the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the simple commands of a shell block as words: after line joining, without pipes and comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        is_file = False  # after > or <
        for word in [*lexer, ";"]:
            if word in (">", ">>", "<", "2>"):
                is_file = True
            elif is_file:
                is_file = False
            elif word in ("|", "||", "&", "&&", ";"):
                if words:
                    yield words
                words = []
            elif words or not re.fullmatch(r"\w+=.*", word):  # VARIABLE=value in front of a command
                words.append(word)


def shell_commands() -> Iterator[tuple[Block, list[str]]]:
    """Yield every command of every shell block of every page."""
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("bash", "sh", "console"):
                for words in commands(block):
                    yield block, words
