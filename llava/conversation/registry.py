"""Template: all that belongs to one chat template, and the registry of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
)
from llava.conversation.jinja import chat_template
from llava.conversation.render import Conversation
from llava.conversation.styles import SeparatorStyle, Style, style_of
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TEMPLATES",
    "Template",
    "conv_templates",
    "conversation_for",
    "find_template",
    "register_template",
    "template_of",
]

OUTSIDERS_RANK = 100
V0_SEPARATOR = "###"


@dataclass(frozen=True)
class Template:
    """An empty dialog and where it belongs; its `sep_style` says how it renders and is labelled.

    name, aliases: keys of conv_templates. model_types: of the configs of models that speak it; the one place
    where a family of LLMs and its template meet, so that a family names no template. name_parts: parts of
    model names that tell it, tried in the order of `rank` and then of registration.
    """

    name: str
    conversation: Conversation
    model_types: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    name_parts: tuple[str, ...] = ()
    rank: int = OUTSIDERS_RANK

    @property
    def style(self) -> Style:
        """What its sep_style does. Raises UserError for an unknown one."""
        return style_of(self.conversation.sep_style)

    @property
    def labels(self) -> str:
        """The name of the rule that finds the answers in training. Raises UserError where none fits."""
        conversation, rule = self.conversation, self.style.labels
        if isinstance(conversation.sep_style, SeparatorStyle) and rule in ("v0", "v1", "mpt"):
            version = conversation.version
            named = "v1" if version.startswith("v1") else "mpt" if version == "mpt" else rule
            if named != rule:
                raise UserError(
                    f"the template has version {version!r}, which is labelled by the rule {named!r}, but its "
                    f"sep_style {conversation.sep_style.name} by {rule!r}; change one of the two"
                )
        if rule == "v0" and conversation.sep != V0_SEPARATOR:
            raise UserError(
                f"the template (version {conversation.version!r}) separates turns with {conversation.sep!r}, "
                f"but in training the style SINGLE is the first format, which writes {V0_SEPARATOR!r}; "
                'give it a Style with labels="spans" as sep_style'
            )
        return rule

    def stop_strings(self) -> tuple[str, ...]:
        """Return the strings that end an answer while it is written."""
        return self.style.stop_strings(self.conversation)

    def jinja(self, *, start_end: bool = False, videos: bool = False) -> str:
        """Return its jinja form; start_end: `mm_use_im_start_end`; videos: messages may have one."""
        token = DEFAULT_IMAGE_TOKEN
        token = f"{DEFAULT_IM_START_TOKEN}{token}{DEFAULT_IM_END_TOKEN}" if start_end else token
        return chat_template(self.conversation, token, DEFAULT_VIDEO_TOKEN if videos else "")

    def check_dialog(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """Say in a sentence why training cannot hold these turns ("from" and "value"); None: it can."""
        rule = self.labels
        if rule == "v0":
            return None  # takes whoever speaks, in any order
        if rule == "plain":
            return check_caption(messages)
        return _check_order(messages, self.conversation, first_needs_text=rule == "llama_2")


def check_caption(messages: Sequence[Mapping[str, str]]) -> str | None:
    """Say in a sentence why these turns are no image with its caption; None: they are."""
    if len(messages) != 2:
        return f"the plain template needs one question and one caption, found {len(messages)} turns"
    if DEFAULT_IMAGE_TOKEN not in messages[0]["value"]:
        return f"the plain template needs {DEFAULT_IMAGE_TOKEN} in the first turn, found none"
    return None


def _check_order(
    messages: Sequence[Mapping[str, str]], conversation: Conversation, *, first_needs_text: bool
) -> str | None:
    """Human and gpt alternate; a first turn that is not the human's is dropped in training."""
    if not messages:
        return "a conversation has no turns; expected a question and an answer"
    for number, turn in enumerate(messages):
        if turn["from"] not in ("human", "gpt"):
            return f"turn {number} is from {turn['from']!r}; expected 'human' or 'gpt'"
    start = 0 if messages[0]["from"] == "human" else 1
    for number, turn in enumerate(messages[start:]):
        expected = ("human", "gpt")[number % 2]
        if turn["from"] != expected:
            return (
                f"turn {number + start} is from {turn['from']!r} where {expected!r} was expected; "
                "human and gpt must alternate"
            )
    if first_needs_text and len(messages) > start and not messages[start]["value"]:
        return (
            f"the dialog begins with role {conversation.roles[0]!r} and text ''; "
            f"this template needs a text of role {conversation.roles[0]!r} first"
        )
    return None


# Filled by templates.py and by other projects. conv_templates is the reference's: others index and change it.
TEMPLATES: dict[str, Template] = {}
conv_templates: dict[str, Conversation] = {}


def register_template(template: Template) -> Template:
    """Make a template known to training, chat and export under its name and aliases.

    Raises UserError when a name or a model type is taken, and when its sep_style is unknown.
    """
    names = (template.name, *template.aliases)
    taken = [name for name in names if name in conv_templates]
    if taken:
        raise UserError(f"there is already a template named {taken[0]!r}; choose another name")
    for other in TEMPLATES.values():
        if shared := sorted(set(template.model_types) & set(other.model_types)):
            raise UserError(
                f"the template {template.name!r} is for models of type {shared[0]!r}, which {other.name!r} "
                "has taken; one template belongs to a model type, others are chosen by conv_template or name"
            )
    _ = template.style
    for name in names:
        TEMPLATES[name], conv_templates[name] = template, template.conversation
    return template


def conversation_for(template: str | Conversation, tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """Return the empty dialog of a template (or its key), for a model with this tokenizer.

    Only `chat_template` differs from the one in conv_templates: it renders with the tokenizer's own template.
    Raises UserError where the tokenizer has none, or one that cannot be used.
    """
    conversation = conv_templates[template] if isinstance(template, str) else template
    style = style_of(conversation.sep_style)
    bound = style.bind(tokenizer)
    return conversation if bound is style else replace(conversation.copy(), sep_style=bound)


def template_of(conversation: Conversation) -> Template:
    """Return the template of a conversation; one that nobody registered goes by its own sep_style."""
    return Template(conversation.version, conversation)


def find_template(key: str, *, flag: str = "conv-mode", also: Iterable[str] = ()) -> Template:
    """Return the template of a key of conv_templates, also one that another project has put there.

    flag: where the key comes from; also: further values that are taken there. Raises UserError for an unknown
    key, with the known ones and the nearest.
    """
    if key in conv_templates:
        found = TEMPLATES.get(key)
        if found is None or found.conversation is not conv_templates[key]:
            found = Template(key, conv_templates[key])
        return found
    known = sorted({*conv_templates, *also})
    near = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{flag} is {key!r}; the known ones are {', '.join(known)}{meant}")
