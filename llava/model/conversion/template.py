"""The chat template (jinja) and processor files of a llava-hf folder, made from LLaVA's own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.model.conversion.config import FLAT, NEXT
from llava.model.multimodal_encoder.base import VisionTower

_IMAGE_PROCESSORS = {"pad": "LlavaImageProcessor", "anyres": "LlavaNextImageProcessor"}


def chat_template(conversation: Conversation, *, start_end: bool = False) -> str:
    """Return a jinja template that renders messages as `Conversation.get_prompt()` does.

    Messages have role user or assistant, and as content a text or a list of parts of type text and image;
    images go in front of the text, one line each. A first message of role system takes the place of the
    template's own system text. start_end: `mm_use_im_start_end`. The start token is left to the tokenizer.
    """
    image = DEFAULT_IMAGE_TOKEN
    image = f"{DEFAULT_IM_START_TOKEN}{image}{DEFAULT_IM_END_TOKEN}" if start_end else image
    names = {"user": conversation.roles[0], "assistant": conversation.roles[1]}
    before, system, after = _head(conversation)
    lines = [
        "{% if messages and messages[0]['role'] == 'system' %}",
        "{% set system = messages[0]['content'] if messages[0]['content'] is string"
        " else messages[0]['content'][0]['text'] %}{% set turns = messages[1:] %}",
        f"{{% else %}}{{% set system = {_quoted(system)} %}}{{% set turns = messages %}}{{% endif %}}",
        f"{{% set names = {json.dumps(names)} %}}",
    ]
    if conversation.sep_style is not SeparatorStyle.LLAMA_2:
        lines.append(f"{{{{ {_quoted(before)} + system + {_quoted(after)} }}}}")
    lines += [
        "{% for message in turns %}",
        "{% if message['role'] not in names %}"
        "{{ raise_exception('The role of a message is user or assistant, of the first also system.') }}"
        "{% endif %}",
        "{% set said %}{% if message['content'] is string %}{{ message['content'] }}{% else %}",
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        f"{{{{ {_quoted(image)} + '\\n' }}}}{{% endif %}}{{% endfor %}}",
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endset %}",
        _llama_2_turn(conversation)
        if conversation.sep_style is SeparatorStyle.LLAMA_2
        else _turn(conversation),
        "{% endfor %}",
    ]
    if conversation.sep_style not in (SeparatorStyle.LLAMA_2, SeparatorStyle.PLAIN):
        colon = "" if conversation.sep_style is SeparatorStyle.MPT else ":"
        lines.append(
            f"{{% if add_generation_prompt %}}{{{{ names['assistant'] + {_quoted(colon)} }}}}{{% endif %}}"
        )
    return "".join(lines)


def _quoted(text: str | None) -> str:
    """Write a text as a string of jinja."""
    return json.dumps(text or "")


def _head(conversation: Conversation) -> tuple[str, str, str]:
    """Cut what stands in front of the first message into (before, system text, after)."""
    mark = "<|im_start|>system\n"
    before = mark if conversation.system.startswith(mark) else ""
    alone = conversation.sep_style is SeparatorStyle.LLAMA_2  # there it is part of the first message
    after = "" if alone else conversation.get_prompt().removeprefix(conversation.system)
    return before, conversation.system.removeprefix(before), after


def _turn(conversation: Conversation) -> str:
    """One turn of every style but LLAMA_2; an empty text leaves the turn open."""
    seps = [conversation.sep, conversation.sep]
    if conversation.sep_style in (SeparatorStyle.TWO, SeparatorStyle.PLAIN) and conversation.sep2 is not None:
        seps[1] = conversation.sep2
    first = len(conversation.messages) % 2  # the separator goes by position, the template's examples included
    after_role = {SeparatorStyle.MPT: "", SeparatorStyle.PLAIN: None}.get(conversation.sep_style, ": ")
    end = f"[{_quoted(seps[first])}, {_quoted(seps[1 - first])}][loop.index0 % 2]"
    if after_role is None:
        return f"{{% if said %}}{{{{ said + {end} }}}}{{% endif %}}"
    role = "names[message['role']]"
    return (
        f"{{{{ {role} }}}}{{% if said %}}{{{{ {_quoted(after_role)} + said + {end} }}}}"
        f"{{% else %}}{{{{ {_quoted(after_role.rstrip())} }}}}{{% endif %}}"
    )


def _llama_2_turn(conversation: Conversation) -> str:
    """One turn of LLAMA_2; the system text is part of the first, empty ones are left out."""
    sep, end = _quoted(conversation.sep), _quoted(conversation.sep2)
    return (
        "{% if loop.index0 == 0 %}{% if message['role'] != 'user' or not said %}"
        "{{ raise_exception('The first message is one of the user, with a text.') }}{% endif %}"
        "{% if system %}{% set said = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + said %}"
        "{% endif %}{% endif %}"
        "{% if said %}{% if loop.index0 % 2 == 0 %}"
        f"{{{{ ('' if loop.first else {sep}) + '[INST] ' + said + ' [/INST]' }}}}"
        f"{{% else %}}{{{{ ' ' + said + ' ' + {end} }}}}{{% endif %}}{{% endif %}}"
    )


# ------------------------------------------------------------------------------------------- processor files


def image_processor_name(tower_class: type[VisionTower]) -> str:
    """Return the name under which transformers' files know a tower's image processor."""
    return tower_class.processor_class.__name__.removesuffix("Pil")


def image_processor_fields(processor: Any, hf: dict[str, Any]) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: the settings with which pixel values equal LLaVA's.

    processor: the tower's image processor. hf: content of the folder's config.json.
    """
    fields = {
        "image_processor_type": _IMAGE_PROCESSORS.get(
            hf["image_aspect_ratio"], type(processor).__name__.removesuffix("Pil")
        ),
        "do_resize": True,
        "size": _numbers(processor.size),
        "resample": int(processor.resample),
        "do_center_crop": bool(processor.do_center_crop),
        "crop_size": _numbers(processor.crop_size),
        "do_rescale": True,
        "rescale_factor": processor.rescale_factor,
        "do_normalize": True,
        "image_mean": list(processor.image_mean),
        "image_std": list(processor.image_std),
        "do_convert_rgb": True,
    }
    if hf["model_type"] == NEXT:
        fields["image_grid_pinpoints"] = hf["image_grid_pinpoints"]
    if fields["image_processor_type"] in _IMAGE_PROCESSORS.values():
        fields["do_pad"] = (
            True  # to a square with the mean colour; of NEXT: batches to equal numbers of tiles
        )
    return fields


def _numbers(size: Any) -> dict[str, int]:
    return {name: int(size[name]) for name in ("shortest_edge", "height", "width") if size.get(name)}


def save_processor(folder: Path, image_fields: dict[str, Any], hf: dict[str, Any], template: str) -> None:
    """Write the processor's files under the names that transformers 4 and 5, vLLM and SGLang look for."""
    name = "LlavaProcessor" if hf["model_type"] == FLAT else "LlavaNextProcessor"
    processor = {
        "processor_class": name,
        "image_token": DEFAULT_IMAGE_TOKEN,
        "patch_size": hf["vision_config"]["patch_size"],
        "vision_feature_select_strategy": hf["vision_feature_select_strategy"],
        "num_additional_image_tokens": 1,  # the CLS token, which "default" takes off again
    }
    contents = {
        "processor_config.json": processor,
        "preprocessor_config.json": {**image_fields, "processor_class": name},
        "chat_template.json": {"chat_template": template},
    }
    for file, content in contents.items():
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
        (folder / file).write_text(text + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def image_aspect_ratio(fields: dict[str, Any]) -> str:
    """Tell LLaVA's image_aspect_ratio from the content of a llava-hf folder's preprocessor_config.json."""
    pads = str(fields.get("image_processor_type", "")).startswith("LlavaImageProcessor") and fields.get(
        "do_pad"
    )
    return "pad" if pads else "square"
