"""ChatStyle: turns between control tokens, which nobody can write in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava.conversation.styles import Frame, Piece, Span, Style, Turn, quoted
from llava.utils import UserError


@dataclass(frozen=True)
class ChatStyle(Style):
    """Turns as role, text, end token (`sep`; of answers `sep2`, if it is set) and `after_end`.

    Roles and ends are tokenized with their control tokens, texts without: "<|im_end|>" in a question is text.
    An answer with its end token is tokenized by itself, as a model writes it, and is what is learned.
    Only None is an open turn; an empty text is one that says nothing. system_head: what stands before the
    system text, None where the template has no place for one. after_end: what follows an end token. trim:
    texts lose the blanks round them.
    """

    labels: str = "pieces"
    system_head: str | None = None
    after_end: str = ""
    trim: bool = False
    two_ends: bool = True

    def pieces(self, frame: Frame, turns: Sequence[Turn]) -> list[Piece]:
        """Render a dialog; raises UserError for a system text without a place."""
        pieces: list[Piece] = []
        question_end, answer_end = self.ends(frame)
        if frame.system:
            if self.system_head is None:
                raise UserError(f"the template {self.name} has no place for a system text; omit it")
            pieces += [
                Piece(self.system_head, False, False),
                Piece(self._shown(frame.system), False, True),
                Piece(question_end + self.after_end, False, False),
            ]
        for role, text, supervised in turns:
            pieces.append(Piece(role, False, False))
            if text is None:
                continue
            end = answer_end if role == frame.roles[1] else question_end
            pieces += [
                Piece(self._shown(text), supervised, True),
                Piece(end, supervised, False),
                Piece(self.after_end, False, False),
            ]
        return pieces

    def spans(self, frame: Frame, turns: Sequence[Turn]) -> list[Span]:
        """Render a dialog, an answer and its end as one span."""
        spans: list[Span] = []
        for text, supervised, _ in self.pieces(frame, turns):
            if supervised and spans and spans[-1].supervised:
                spans[-1] = Span(spans[-1].text + text, True)
            else:
                spans.append(Span(text, supervised))
        return spans

    def _shown(self, text: str) -> str:
        return text.strip() if self.trim else text

    # ---- jinja ----

    def jinja_opening(self, frame: Frame, prompt: str) -> str:
        """Return the system text between its head and its end."""
        if self.system_head is None:
            refusal = quoted("This template has no place for a system message.")
            return f"{{% if system %}}{{{{ raise_exception({refusal}) }}}}{{% endif %}}"
        system = "(system | trim)" if self.trim else "system"
        end = quoted(self.ends(frame)[0] + self.after_end)
        return f"{{% if system %}}{{{{ {quoted(self.system_head)} + {system} + {end} }}}}{{% endif %}}"

    def jinja_head(self, frame: Frame) -> tuple[str, str, str]:
        """Return the system text with what stands round it."""
        return self.system_head or "", frame.system, self.ends(frame)[0] + self.after_end

    def jinja_turn(self, frame: Frame, first: int) -> str:
        """Return one turn in jinja."""
        question_end, answer_end = (quoted(end + self.after_end) for end in self.ends(frame))
        said = "(said | trim)" if self.trim else "said"
        end = f"({question_end} if message['role'] == 'user' else {answer_end})"
        return f"{{{{ names[message['role']] + {said} + {end} }}}}"

    def jinja_answer(self) -> str:
        """Return the open turn of the assistant in jinja."""
        return "{% if add_generation_prompt %}{{ names['assistant'] }}{% endif %}"
