"""Styles: how turns are joined, what ends an answer, which rule labels it, its form in jinja."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What finds the answers in training; the code of each stands in llava.train.labels.
LABEL_RULES = ("v0", "v1", "llama_2", "mpt", "plain", "spans", "pieces")


# What stands before the system text in templates of the reference's form that mark it.
SYSTEM_HEADS = ("<|im_start|>system\n", "<|system|>\n")


def system_head(system: str) -> str:
    """Return the markup that a template's system text begins with; "" for none."""
    return next((head for head in SYSTEM_HEADS if system.startswith(head)), "")


class SeparatorStyle(Enum):
    """The reference's names of its styles; what each does stands in STYLES."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


class Turn(NamedTuple):
    """A turn as text; None and an empty text are turns that are still open."""

    role: str
    text: str | None
    supervised: bool


class Span(NamedTuple):
    """A piece of a rendered dialog; supervised pieces are what the model learns to write."""

    text: str
    supervised: bool


class Piece(NamedTuple):
    """A piece of a rendered dialog as it is tokenized; control tokens in what somebody `said` stay text."""

    text: str
    supervised: bool
    said: bool


class Frame(Protocol):
    """What a style reads of a conversation: everything but its turns."""

    system: str
    roles: tuple[str, str]
    sep: str
    sep2: str | None


@dataclass(frozen=True)
class Style:
    """Turns as role, `after_role`, text and end; `Llama2Style` differs.

    after_role: what follows the name of a role; None omits the names, too. sep_after_system: whether `sep`
    ends the system text, None where there is one. two_ends: answers end with `sep2` (if it is set), not with
    `sep`. stop: what ends an answer while it is written, where that is not its end in training. labels: the
    rule of llava.train.labels.preprocess that finds the answers; "spans" takes them from this rendering,
    "pieces" also tokenizes them by themselves, as ChatStyle needs it.
    """

    name: str
    after_role: str | None = ""
    sep_after_system: bool | None = None
    two_ends: bool = False
    stop: str | None = None
    labels: str = "spans"

    def __post_init__(self) -> None:
        """Check the label rule. Raises UserError."""
        if self.labels not in LABEL_RULES:
            raise UserError(f"the style {self.name} has labels={self.labels!r}; use one of {LABEL_RULES}")

    def ends(self, frame: Frame) -> tuple[str, str]:
        """Return what ends a question and an answer."""
        return frame.sep, (frame.sep if not self.two_ends or frame.sep2 is None else frame.sep2)

    def stop_strings(self, frame: Frame) -> tuple[str, ...]:
        """Return the strings that end an answer while it is written."""
        stop = self.ends(frame)[1] if self.stop is None else self.stop
        return (stop,) if stop else ()

    def after_system(self, frame: Frame) -> str:
        """Return what stands between the system text and the first turn."""
        wanted = bool(frame.system) if self.sep_after_system is None else self.sep_after_system
        return frame.sep if wanted else ""

    def spans(self, frame: Frame, turns: Sequence[Turn]) -> list[Span]:
        """Render a dialog piece by piece; some pieces may be empty."""
        pieces = [Span(frame.system + self.after_system(frame), False)]
        ends = self.ends(frame)
        for index, (role, text, supervised) in enumerate(turns):
            name, colon = ("", "") if self.after_role is None else (role, self.after_role)
            if text:
                # the separator goes by position and not by role, as in the reference
                pieces += [Span(name + colon, False), Span(text + ends[index % 2], supervised)]
            else:
                pieces.append(Span(name + colon.rstrip(" "), False))
        return pieces

    # ---- what tokenizes a dialog piece by piece (labels "pieces") ----

    @property
    def in_pieces(self) -> bool:
        """Tell whether dialogs are tokenized piece by piece, in training and while asking."""
        return self.labels == "pieces"

    @property
    def start_token(self) -> bool:
        """Tell whether the tokenizer's start token is put in front; False where the rendering has it."""
        return True

    def pieces(self, frame: Frame, turns: Sequence[Turn]) -> list[Piece]:
        """Render a dialog as pieces of template and of what was said; some may be empty."""
        raise UserError(f'the style {self.name} has labels="pieces", which needs a ChatStyle; use "spans"')

    @property
    def digest(self) -> str:
        """Return the digest of a template that comes from outside and may change; "" for one of this code."""
        return ""

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Style:
        """Return the style for a model's tokenizer; only a style that renders with it becomes another."""
        return self

    # ---- jinja ----

    def own_jinja(self, image_token: str, video_token: str) -> str:
        """Return the template in jinja of a style that has one already; "" to make it of the parts below."""
        return ""

    def jinja_opening(self, frame: Frame, prompt: str) -> str:
        """Return in jinja what stands in front of the first turn. prompt: of the empty dialog."""
        before, _, after = self.jinja_head(frame)
        examples = prompt.removeprefix(frame.system + after)
        if self.sep_after_system is None:  # the separator only behind a system text
            after = f"({quoted(frame.sep)} if system else '') + {quoted(examples)}"
        else:
            after = quoted(after + examples)
        return f"{{{{ {quoted(before)} + system + {after} }}}}"

    def jinja_head(self, frame: Frame) -> tuple[str, str, str]:
        """Cut what stands in front of the first turn into (before, system text, after)."""
        before = system_head(frame.system)
        return before, frame.system.removeprefix(before), self.after_system(frame)

    def jinja_turn(self, frame: Frame, first: int) -> str:
        """Return one turn in jinja. first: the place of the first turn behind the template's examples."""
        ends = self.ends(frame)
        end = f"[{quoted(ends[first % 2])}, {quoted(ends[1 - first % 2])}][loop.index0 % 2]"
        if self.after_role is None:
            return f"{{% if said %}}{{{{ said + {end} }}}}{{% endif %}}"
        role = "names[message['role']]"
        return (
            f"{{{{ {role} }}}}{{% if said %}}{{{{ {quoted(self.after_role)} + said + {end} }}}}"
            f"{{% else %}}{{{{ {quoted(self.after_role.rstrip(' '))} }}}}{{% endif %}}"
        )

    def jinja_answer(self) -> str:
        """Return the open turn of the assistant in jinja."""
        if self.after_role is None:
            return ""
        open_turn = quoted(self.after_role.rstrip(" "))
        return f"{{% if add_generation_prompt %}}{{{{ names['assistant'] + {open_turn} }}}}{{% endif %}}"


@dataclass(frozen=True)
class Llama2Style(Style):
    """[INST] question [/INST] answer </s>; the start marker of the first turn is left to the tokenizer."""

    def spans(self, frame: Frame, turns: Sequence[Turn]) -> list[Span]:
        """Render a dialog; raises UserError when it does not begin with a text of the first role."""
        pieces: list[Span] = []
        end = self.ends(frame)[1]
        for index, (role, text, supervised) in enumerate(turns):
            if index == 0:
                if not text or role != frame.roles[0]:
                    raise UserError(
                        f"the dialog begins with role {role!r} and text {text!r}; "
                        f"this template needs a text of role {frame.roles[0]!r} first"
                    )
                if frame.system:
                    text = f"<<SYS>>\n{frame.system}\n<</SYS>>\n\n{text}"
            if not text:
                continue
            if index % 2 == 0:
                prompt = f"{frame.sep}[INST] {text} [/INST]"
                # a set of characters and not a prefix, as in the reference
                pieces.append(Span(prompt if index else prompt.lstrip(frame.sep), False))
            else:
                pieces += [Span(" ", False), Span(f"{text} {end}", supervised)]
        return pieces

    def jinja_opening(self, frame: Frame, prompt: str) -> str:
        """Return nothing: the system text is part of the first turn."""
        return ""

    def jinja_head(self, frame: Frame) -> tuple[str, str, str]:
        """Return the system text alone: it is part of the first turn."""
        return "", frame.system, ""

    def jinja_turn(self, frame: Frame, first: int) -> str:
        """Return one turn in jinja; empty ones are left out."""
        return (
            "{% if loop.index0 == 0 %}{% if message['role'] != 'user' or not said %}"
            "{{ raise_exception('The first message is one of the user, with a text.') }}{% endif %}"
            "{% if system %}{% set said = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + said %}"
            "{% endif %}{% endif %}"
            "{% if said %}{% if loop.index0 % 2 == 0 %}"
            f"{{{{ ('' if loop.first else {quoted(frame.sep)}) + '[INST] ' + said + ' [/INST]' }}}}"
            f"{{% else %}}{{{{ ' ' + said + ' ' + {quoted(self.ends(frame)[1])} }}}}"
            "{% endif %}{% endif %}"
        )

    def jinja_answer(self) -> str:
        """Return nothing: a question ends with what opens the answer."""
        return ""


def quoted(text: str | None) -> str:
    """Write a text as a string of jinja."""
    return json.dumps(text or "")


STYLES: dict[SeparatorStyle, Style] = {
    SeparatorStyle.SINGLE: Style("SINGLE", ": ", sep_after_system=True, labels="v0"),
    SeparatorStyle.TWO: Style("TWO", ": ", sep_after_system=True, two_ends=True, labels="v1"),
    SeparatorStyle.MPT: Style("MPT", "", sep_after_system=True, labels="mpt"),
    SeparatorStyle.PLAIN: Style("PLAIN", None, sep_after_system=False, two_ends=True, labels="plain"),
    SeparatorStyle.LLAMA_2: Llama2Style("LLAMA_2", two_ends=True, labels="llama_2"),
}


def style_of(sep_style: SeparatorStyle | Style) -> Style:
    """Return what a conversation's sep_style does. Raises UserError for an unknown one."""
    if isinstance(sep_style, Style):
        return sep_style
    if sep_style in STYLES:
        return STYLES[sep_style]
    raise UserError(
        f"sep_style is {sep_style!r}; "
        f"use a SeparatorStyle ({', '.join(SeparatorStyle.__members__)}) or a Style"
    )
