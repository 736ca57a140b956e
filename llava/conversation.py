"""Chat templates: how a dialog becomes a prompt, which parts of it are answers, which template to use."""

from __future__ import annotations

import base64
import dataclasses
import io
from enum import Enum, auto
from typing import Any, NamedTuple

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.images import expand2square
from llava.utils import UserError

# Background of a padded picture; training pads with the processor's mean colour, which is the same for CLIP.
PAD_COLOR = (122, 116, 104)

# What a person says in a turn: nothing yet, a text, or (text, picture, how the picture is resized).
Message = str | tuple[str, Image.Image, str] | None


class SeparatorStyle(Enum):
    """How the turns of a dialog are joined."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


class _Turn(NamedTuple):
    role: str
    text: str | None
    supervised: bool


class Span(NamedTuple):
    """A piece of a rendered dialog; supervised pieces are what the model learns to write."""

    text: str
    supervised: bool


@dataclasses.dataclass
class Conversation:
    """A dialog and the rules to render it. An empty text counts as a turn that is still open."""

    system: str
    roles: tuple[str, str]
    messages: list[list[Any]]  # pairs of role and Message
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def get_prompt(self) -> str:
        """Render the dialog as the text that is tokenized."""
        return "".join(span.text for span in self.spans())

    def spans(self) -> list[Span]:
        """Render the dialog piece by piece: answers with the separator that ends them are supervised.

        Raises UserError when a LLAMA_2 dialog does not begin with a text of the first role.
        """
        style, sep = self.sep_style, self.sep
        second = sep if self.sep2 is None else self.sep2
        if style is SeparatorStyle.LLAMA_2:
            pieces = self._llama_2_spans(second)
        elif style is SeparatorStyle.SINGLE:
            pieces = self._plain_spans(self.system + sep, ": ", (sep, sep))
        elif style is SeparatorStyle.TWO:
            pieces = self._plain_spans(self.system + sep, ": ", (sep, second))
        elif style is SeparatorStyle.MPT:
            pieces = self._plain_spans(self.system + sep, "", (sep, sep))
        elif style is SeparatorStyle.PLAIN:
            pieces = self._plain_spans(self.system, None, (sep, second))
        else:
            raise UserError(f"sep_style is {style!r}; use one of {', '.join(SeparatorStyle.__members__)}")
        return [span for span in pieces if span.text]

    def _plain_spans(self, head: str, after_role: str | None, seps: tuple[str, str]) -> list[Span]:
        """Render head and turns; after_role follows the name of a role, None leaves the names out."""
        pieces = [Span(head, False)]
        for index, (role, text, supervised) in enumerate(self._turns()):
            name, colon = ("", "") if after_role is None else (role, after_role)
            if text:
                # the separator goes by position and not by role, as in the reference
                pieces += [Span(name + colon, False), Span(text + seps[index % 2], supervised)]
            else:
                pieces.append(Span(name + colon.rstrip(), False))
        return pieces

    def _llama_2_spans(self, end: str) -> list[Span]:
        """Render in Llama-2's format; the start marker of the first turn is left to the tokenizer."""
        pieces: list[Span] = []
        for index, (role, text, supervised) in enumerate(self._turns()):
            if index == 0:
                if not text or role != self.roles[0]:
                    raise UserError(
                        f"the dialog begins with role {role!r} and text {text!r}; "
                        f"this template needs a text of role {self.roles[0]!r} first"
                    )
                if self.system:
                    text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            if not text:
                continue
            if index % 2 == 0:
                prompt = f"{self.sep}[INST] {text} [/INST]"
                # a set of characters and not a prefix, as in the reference
                pieces.append(Span(prompt if index else prompt.lstrip(self.sep), False))
            else:
                pieces += [Span(" ", False), Span(f"{text} {end}", supervised)]
        return pieces

    def _turns(self) -> list[_Turn]:
        """List the turns as text; the image of the first moves to its front, or into an exchange of its own.

        Answers are supervised, except the examples that belong to the template (those before `offset`).
        """
        turns = []
        for index, (role, message) in enumerate(self.messages):
            answers = role == self.roles[1] if self.roles[0] != self.roles[1] else index % 2 == 1
            turns.append(_Turn(role, _text_of(message), answers and index >= self.offset))
        if self.messages and isinstance(self.messages[0][1], tuple):
            first = turns[0]._replace(text=self.messages[0][1][0].replace(DEFAULT_IMAGE_TOKEN, "").strip())
            if "mmtag" in self.version:
                shown = _Turn(self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>", False)
                turns[:1] = [shown, _Turn(self.roles[1], "Received.", False), first]
            else:
                turns[0] = first._replace(text=f"{DEFAULT_IMAGE_TOKEN}\n{first.text}")
        return turns

    def append_message(self, role: str, message: Message) -> None:
        """Add a turn; None leaves it open for the model."""
        self.messages.append([role, message])

    def process_image(
        self,
        image: Image.Image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ) -> Image.Image | str:
        """Prepare a picture for sending: as PIL, or as base64 text of a file in `image_format`.

        Modes: "Pad" to a square, "Resize" to 336 x 336, "Default" and "Crop" leave the shape. A picture
        longer than max_len is shrunk, its short side to at most min_len. Raises UserError for another mode.
        """
        if image_process_mode == "Pad":
            image = expand2square(image, PAD_COLOR)
        elif image_process_mode == "Resize":
            image = image.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise UserError(
                f"image_process_mode is {image_process_mode!r}; expected Pad, Resize, Default or Crop"
            )
        long, short = max(image.size), min(image.size)
        if long > max_len:
            ratio = long / short
            new_short = max(1, int(min(max_len / ratio, min_len, short)))
            new_long = min(max_len, int(new_short * ratio))
            upright = image.height > image.width
            image = image.resize((new_short, new_long) if upright else (new_long, new_short))
        if return_pil:
            return image
        if image_format.upper() in ("JPEG", "JPG") and image.mode not in ("RGB", "L", "CMYK"):
            image = image.convert("RGB")  # JPEG has no transparency and no palette
        buffer = io.BytesIO()
        image.save(buffer, format=image_format)
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    def get_images(self, return_pil: bool = False) -> list[Image.Image | str]:
        """List the pictures of the user's turns, each prepared by its mode: PIL, or base64 of a PNG file."""
        return [
            self.process_image(message[1], message[2], return_pil=return_pil)
            for _, message in self.messages[self.offset :: 2]
            if isinstance(message, tuple)
        ]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """List the turns as [question, answer] rows for gradio, pictures as inline JPEG."""
        rows: list[list[str | None]] = []
        for index, (_, message) in enumerate(self.messages[self.offset :]):
            if index % 2:
                rows[-1][1] = message
                continue
            if isinstance(message, tuple):
                text, image, _ = message
                data = self.process_image(image, "Default", image_format="JPEG")
                shown = f'<img src="data:image/jpeg;base64,{data}" alt="user upload image" />'
                message = shown + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            rows.append([message, None])
        return rows

    def copy(self) -> Conversation:
        """Return an independent dialog with the same turns; skip_next is back to False."""
        return dataclasses.replace(self, messages=[list(turn) for turn in self.messages], skip_next=False)

    def dict(self) -> dict[str, Any]:
        """Return what is sent and logged: texts without pictures, without sep_style and version."""
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": [[role, _text_of(message)] for role, message in self.messages],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


def _text_of(message: Message) -> str | None:
    return message[0] if isinstance(message, tuple) else message


# The texts below are part of what checkpoints were trained with: not one character may change.
_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions."
)
_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.The visual content will be provided with the following format: <Image>visual "
    "content</Image>."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or "
    "illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n"
    "\nIf a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
_MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest "
    "answers."
)
_SEED_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_SEED_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively short amount of "
    "time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other "
    "hand, are finite and will eventually be depleted, such as coal, oil, and natural gas. Here are some key "
    "differences between renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy "
    "sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than "
    "non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, and other "
    "negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have "
    "lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "
    "locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different "
    "situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social instability.\n"
)


def _markdown(system: str, version: str = "Unknown", examples: tuple[str, ...] = ()) -> Conversation:
    """### Human: ... ### Assistant: ..., with examples as question, answer, question, ..."""
    roles = ("Human", "Assistant")
    turns: list[list[Any]] = [[roles[index % 2], text] for index, text in enumerate(examples)]
    return Conversation(system, roles, turns, len(turns), SeparatorStyle.SINGLE, "###", None, version)


def _vicuna(system: str, version: str = "v1") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.TWO, " ", "</s>", version)


def _llama_2(system: str, sep: str = "<s>") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.LLAMA_2, sep, "</s>", "llama_v2")


def _chatml(system: str) -> Conversation:
    roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    return Conversation(
        f"<|im_start|>system\n{system}", roles, [], 0, SeparatorStyle.MPT, "<|im_end|>", None, "mpt"
    )


conv_vicuna_v0 = _markdown(_HUMAN, examples=(_SEED_QUESTION, _SEED_ANSWER))
conv_vicuna_v1 = _vicuna(_USER)
conv_llama_2 = _llama_2(_LLAMA_2)
conv_llava_llama_2 = _llama_2(_LLAVA_LLAMA_2)
conv_mistral_instruct = _llama_2("", sep="")
conv_chatml_direct = _chatml("Answer the questions.")
conv_mpt = _chatml(_MPT)
conv_llava_plain = Conversation("", ("", ""), [], 0, SeparatorStyle.PLAIN, "\n")
conv_llava_v0 = _markdown(_HUMAN)
conv_llava_v0_mmtag = _markdown(_MMTAG, version="v0_mmtag")
conv_llava_v1 = _vicuna(_HUMAN)
conv_llava_v1_mmtag = _vicuna(_MMTAG, version="v1_mmtag")

# Read at call time by `preprocess`; other projects assign it.
default_conversation = conv_vicuna_v1

conv_templates = {
    "default": conv_vicuna_v0,
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llama_2": conv_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "chatml_direct": conv_chatml_direct,
    "mistral_direct": conv_chatml_direct,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "llava_v0": conv_llava_v0,
    "v0_mmtag": conv_llava_v0_mmtag,
    "llava_v1": conv_llava_v1,
    "v1_mmtag": conv_llava_v1_mmtag,
    "llava_llama_2": conv_llava_llama_2,
    "mpt": conv_mpt,
}


# The reference's rule: the first of these that occurs in a model's name decides.
_NAME_RULES = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)
_FAMILY_TEMPLATES = {"llava_mpt": "mpt", "llava_mistral": "mistral_instruct"}
# Yi-34B, the language model of LLaVA-1.6-34B, speaks ChatML and has this many tokens; Vicuna has half.
_YI_VOCABULARY = 64_000


def choose_template(model_name: str, config: object | None = None) -> tuple[str, str]:
    """Choose the template of a checkpoint: the key of conv_templates, and a sentence that says why.

    config: the model's config object or its dict. What the files say goes before what names say.
    """

    def read(key: str) -> Any:
        return config.get(key) if isinstance(config, dict) else getattr(config, key, None)

    written, family, origin = read("conv_template"), read("model_type"), read("_name_or_path")
    note = ""
    if written in conv_templates:
        return written, f"config.conv_template is {written!r}"
    if written is not None:
        note = f" (config.conv_template is {written!r}, which is no template here)"
    if family in _FAMILY_TEMPLATES:
        return _FAMILY_TEMPLATES[family], f"the model is of type {family!r}{note}"
    for source, name in (("the model's name", model_name), ("config._name_or_path", origin)):
        for part, key in _NAME_RULES:
            if isinstance(name, str) and part in name.lower():
                return key, f"{source}, {name!r}, contains {part!r}{note}"
    vocabulary, projector = read("vocab_size"), read("mm_projector_type")
    if read("image_aspect_ratio") == "anyres" and (vocabulary or 0) >= _YI_VOCABULARY:
        return (
            "chatml_direct",
            f"the names say nothing; anyres tiling with {vocabulary} tokens is LLaVA-1.6-34B's{note}",
        )
    if isinstance(projector, str) and projector.startswith("mlp"):
        return (
            "llava_v1",
            f"the names say nothing; a projector of type {projector!r} came with version 1.5{note}",
        )
    if projector == "linear" or (projector is None and read("mm_vision_tower")):
        return "llava_v0", f"the names say nothing; a linear projector came with version 0{note}"
    return (
        "llava_v0",
        f"neither the name {model_name!r} nor the config tells the template; the oldest is taken{note}",
    )


if __name__ == "__main__":
    print(default_conversation.get_prompt())
