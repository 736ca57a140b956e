"""TokenizerStyle: a tokenizer's own chat template, cut into template and texts by construction.

The dialog is rendered with private-use characters in place of its texts; what stands between them is the
template's. The texts are put back, and the whole must equal the true rendering.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llava.conversation.chat_style import ChatStyle
from llava.conversation.pieces import adds_start, known_tokens
from llava.conversation.styles import Frame, Piece, Style, Turn, quoted
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CHAT_TEMPLATE = "chat_template"  # the template's name, and the value of --version

# Templates with this switch have another opening for answers without a chain of thought, which training has.
_SWITCHES: tuple[Mapping[str, bool], ...] = ({}, {"enable_thinking": False})
_END_OF_THOUGHT = "</think>"
_OPEN = "\ue002"  # stands for the answer that is wanted

# Makes a text of each message's parts, in front of a template that takes texts alone.
_FLATTEN = (
    "{% set read = namespace(messages=[]) %}{% for message in messages %}"
    "{% if message['content'] is string %}{% set said = message['content'] %}{% else %}"
    "{% set parts = namespace(images='', text='') %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set parts.images = parts.images + IMAGE + '\\n' %}"
    "VIDEO{% elif part['type'] == 'text' %}{% set parts.text = parts.text + part['text'] %}{% endif %}"
    "{% endfor %}{% set said = parts.images + parts.text %}{% endif %}"
    "{% set read.messages = read.messages + [{'role': message['role'], 'content': said}] %}"
    "{% endfor %}{% set messages = read.messages %}"
)
_FLATTEN_VIDEO = "{% elif part['type'] == 'video' %}{% set parts.images = parts.images + TOKEN + '\\n' %}"

ChatMessage = dict[str, str]


@dataclass(frozen=True)
class TokenizerStyle(ChatStyle):
    """Turns as the chat template of a tokenizer renders them; `bind` gives it the tokenizer.

    The other fields are found out by `bind`. switches: what the template is told besides the messages. lead:
    blanks in front of an answer that the prompt of an open turn does not have; they are learned with it.
    stops: the tokens that end answers.
    """

    tokenizer: Any = field(default=None, repr=False, compare=False)
    switches: Mapping[str, bool] = field(default_factory=dict, compare=False)
    lead: str = ""
    stops: tuple[str, ...] = ()

    @property
    def start_token(self) -> bool:
        """False: the rendering has the start token, where the template wants it."""
        return False

    @property
    def digest(self) -> str:
        """Return the digest of the tokenizer's template."""
        return hashlib.sha256(self._needed().get_chat_template().encode()).hexdigest()[:16]

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Style:
        """Return the style that renders with this tokenizer. Raises UserError where its template cannot."""
        if self.tokenizer is tokenizer:
            return self
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; put a "
                "chat_template.jinja beside its files, or name another template (--version in training, "
                "--conv-mode elsewhere)"
            )
        probe = _probe(tokenizer)
        return replace(self, tokenizer=tokenizer, **probe)

    def stop_strings(self, frame: Frame) -> tuple[str, ...]:
        """Return the tokens that end answers."""
        return self.stops

    def pieces(self, frame: Frame, turns: Sequence[Turn]) -> list[Piece]:
        """Render a dialog. Raises UserError for one that the template refuses or renders with other texts."""
        tokenizer = self._needed()
        if not turns:
            return []
        if any(turn.text is None for turn in turns[:-1]):
            raise UserError("a turn before the last one is open; only the last answer can be")
        is_open = turns[-1].text is None
        messages = [{"role": "system", "content": frame.system}] if frame.system else []
        for role, text, _ in turns:
            messages.append(_message(role == frame.roles[1], _OPEN if text is None else text))
        glue = _glue(tokenizer, messages, self.switches)
        shown = _shown(_render(tokenizer, messages, self.switches), glue, messages, thoughts=not is_open)
        supervised = [False] * (len(messages) - len(turns)) + [turn.supervised for turn in turns]
        roles = [message["role"] for message in messages]
        pieces, rest = [], glue[0]
        for index, (role, text, learned) in enumerate(zip(roles, shown, supervised, strict=True)):
            answers = role == "assistant"
            lead = self.lead if answers and rest.endswith(self.lead) else ""
            pieces.append(Piece(rest.removesuffix(lead), False, False))
            if is_open and index == len(roles) - 1:
                return pieces
            after = glue[index + 1]
            end = _end(after, tokenizer) if answers else ""
            pieces += [Piece(lead, learned, False), Piece(text, learned, True), Piece(end, learned, False)]
            rest = after.removeprefix(end)
        return [*pieces, Piece(rest, False, False)]

    def own_jinja(self, image_token: str, video_token: str) -> str:
        """Return the tokenizer's template behind what makes texts of parts: images in front, one line each.

        video_token: "" where messages have no videos.
        The start token in front is omitted where the tokenizer itself puts it there.
        """
        switches = "".join(
            f"{{% if {name} is not defined %}}{{% set {name} = {str(value).lower()} %}}{{% endif %}}"
            for name, value in self.switches.items()
        )
        video = _FLATTEN_VIDEO.replace("TOKEN", quoted(video_token)) if video_token else ""
        flatten = _FLATTEN.replace("IMAGE", quoted(image_token)).replace("VIDEO", video)
        tokenizer = self._needed()
        template = tokenizer.get_chat_template()
        if adds_start(tokenizer):
            rendered = "{{ rendered.removeprefix(bos_token) }}"
            template = f"{{% set rendered %}}{template}{{% endset %}}{rendered}"
        return f"{flatten}{switches}{template}"

    def _needed(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer. Raises UserError where it is missing."""
        if self.tokenizer is None:
            raise UserError(
                f"the template {CHAT_TEMPLATE} is rendered by a model's tokenizer, which is not here; in "
                "Python get it by llava.conversation.conversation_for(key, tokenizer); behind a controller "
                "start the model's worker with this version, which takes messages, or serve the model by "
                "llava.serve.openai_api --model-path"
            )
        return self.tokenizer


def _message(answers: bool, text: str) -> ChatMessage:
    return {"role": "assistant" if answers else "user", "content": text}


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    switches: Mapping[str, bool],
    *,
    opened: bool = False,
) -> str:
    """Render messages. Raises UserError for what the template refuses."""
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=opened, **switches
        )
    except Exception as error:  # jinja's own errors, and whatever an expression in a template raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the tokenizer's chat template cannot render this dialog ({type(error).__name__}: {reason}); "
            "change the dialog, or use another template (--version in training, --conv-mode elsewhere)"
        ) from error


def _glue(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage], switches: Mapping[str, bool]
) -> list[str]:
    """Return what the template writes before, between and behind the texts: one more than messages."""
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = _render(tokenizer, marked, switches)
    glue = []
    for number, mark in enumerate(marks):
        before, found, rest = rest.partition(mark)
        if not found:
            raise UserError(
                f"the tokenizer's chat template omits or moves message {number}, of the "
                f"{messages[number]['role']}, so that answers cannot be found; use another template"
            )
        glue.append(before)
    return [*glue, rest]


def _shown(real: str, glue: Sequence[str], messages: Sequence[ChatMessage], *, thoughts: bool) -> list[str]:
    """Return the texts as the template has rendered them: some templates strip them. Raises UserError.

    thoughts: an answer without its chain of thought is not that answer; else it is what a history keeps.
    """
    texts: list[str] = []
    place = len(glue[0])
    matches = real.startswith(glue[0])
    for number, message in enumerate(messages):
        after = glue[number + 1]
        found = next(
            (
                one
                for one in _variants(message, thoughts=thoughts)
                if matches and real.startswith(one + after, place)
            ),
            None,
        )
        if found is None:
            raise UserError(
                f"the tokenizer's chat template does not render message {number}, of the {message['role']}, "
                f"as it stands: {message['content']!r:.80}; change the text, or use another template"
            )
        texts.append(found)
        place += len(found) + len(after)
    if place != len(real):
        raise UserError("the tokenizer's chat template writes more behind this dialog than behind another")
    return texts


def _variants(message: ChatMessage, *, thoughts: bool) -> Iterator[str]:
    """Yield what templates make of a text: itself, without blanks or lines round it, without a thought."""
    text = message["content"]
    forgotten = message["role"] == "assistant" and not thoughts
    for one in (text, text.rpartition(_END_OF_THOUGHT)[2]) if forgotten else (text,):
        yield from (one, one.strip(), one.lstrip("\n"), one.strip("\n"), one.rstrip(), one.lstrip())


def _end(after: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what stands behind an answer up to and with its first added token; "" without one."""
    places = ((after.find(token), token) for token in known_tokens(tokenizer).added)
    begin, token = min(
        ((place, token) for place, token in places if place >= 0 and token),
        key=lambda one: one[0],  # of those that begin there the longest, which comes first
        default=(0, ""),
    )
    return after[: begin + len(token)] if token else ""


def _probe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Find out how a template opens and ends answers: switches, lead and stops of a TokenizerStyle."""
    question, answer = _message(False, "\ue003"), _message(True, "\ue004")
    fitting: tuple[Mapping[str, bool], str] | None = None
    for switches in _SWITCHES:
        closed = _render(tokenizer, [question, answer], switches).partition(answer["content"])[0]
        opened = _render(tokenizer, [question], switches, opened=True)
        lead = closed.removeprefix(opened)
        if closed.startswith(opened) and not lead.strip():
            fitting = switches, lead
            break
    if fitting is None:
        logger.info(
            "the tokenizer's chat template opens an answer otherwise than it writes one; prompts end with "
            "what stands in front of answers that are written"
        )
        fitting = {}, ""
    glue = _glue(tokenizer, [question, answer, question, answer], fitting[0])
    ends = [_end(after, tokenizer) for after in (glue[2], glue[4])]
    if not all(ends):
        raise UserError(
            "the tokenizer's chat template ends answers without a token of its own, so that a model could "
            "not learn to stop; add eos_token behind an answer, or use another template"
        )
    stops = tuple(dict.fromkeys(end.strip() for end in ends))
    return {"switches": fitting[0], "lead": fitting[1], "stops": stops}
