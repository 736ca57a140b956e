"""Each template trains by its own rule; registered ones train, chat and export; unknown ones stop."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_training import dialog
from transformers.utils.chat_template_utils import render_jinja_template

from llava import conversation as lib
from llava.constants import IGNORE_INDEX
from llava.conversation import Conversation, SeparatorStyle, Template, find_template
from llava.conversation.registry import TEMPLATES
from llava.inference.chat import ChatSession
from llava.inference.prompt import encode_prompt, pick_conv_mode, stop_strings
from llava.inference.sampling import SamplingParams
from llava.model.builder import load_pretrained_model
from llava.model.conversion.template import chat_template
from llava.model.language_model.registry import FAMILIES
from llava.train.labels.dialogs import check_dialogs
from llava.train.labels.preprocess import choose_label_masks, preprocess
from llava.train.records import DataError
from llava.utils import UserError

PAGE = Path(__file__).parents[3] / "docs" / "data_format.md"
TURNS = dialog(("human", "What?"), ("gpt", "A red cat."), ("human", "And?"), ("gpt", "A dog."))


def _learned(conv: Conversation, tokenizer: Any, masks: str | None = None) -> str:
    batch = preprocess([TURNS], tokenizer, False, conv, masks)
    labels = batch["labels"][0]
    return tokenizer.decode(labels[labels != IGNORE_INDEX]).replace(" ", "")


@pytest.fixture
def own_template() -> Iterator[Template]:
    """The template of docs/data_format.md, made by the code on that page; forgotten after the test."""
    before = dict(lib.conv_templates)
    known = dict(TEMPLATES)
    code = re.search(r"## A template of your own\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None and code[1].count("\n") <= 10
    exec(compile(code[1], str(PAGE), "exec"), {})
    yield TEMPLATES["falcon_it"]
    for mapping, old in ((lib.conv_templates, before), (TEMPLATES, known)):
        mapping.clear()
        mapping.update(old)


def test_a_registered_template_trains_chats_and_exports(
    own_template: Template, variant_tokenizer: Callable[..., Any], checkpoints: Path
) -> None:
    conv, tokenizer = own_template.conversation, variant_tokenizer("plain")
    assert lib.key_for_training("falcon_it") == "falcon_it"
    assert choose_label_masks(None, conv, tokenizer) == "spans"
    assert _learned(conv, tokenizer) == "Aredcat.<|im_end|>Adog.<|im_end|>"
    with pytest.raises(UserError, match="no counts for this template"):
        choose_label_masks("reference", conv, tokenizer)
    assert stop_strings(conv) == ("<|im_end|>",)
    assert lib.choose_template("x", {"model_type": "llava_falcon"})[0] == "falcon_it"
    assert lib.choose_template("my-falcon", None)[0] == "falcon_it"
    said = conv.copy()
    said.append_message(said.roles[0], "Hi")
    said.append_message(said.roles[1], None)
    messages = [{"role": "user", "content": "Hi"}]
    jinja = chat_template(conv)
    rendered = render_jinja_template([messages], chat_template=jinja, add_generation_prompt=True)[0][0]
    assert rendered == said.get_prompt() == f"{said.roles[0]}Hi<|im_end|>\n{said.roles[1]}"
    with pytest.raises(UserError, match="already a template named 'falcon_it'"):
        lib.register_template(own_template)
    loaded = load_pretrained_model(
        str(checkpoints / "llava-tiny-v1.5"), None, "x", device="cpu", dtype="float32"
    )
    tokenizer, model = loaded[0], loaded[1]
    session = ChatSession(*loaded[:3], template="falcon_it")
    answer = session.ask("Hi", params=SamplingParams(temperature=0, max_new_tokens=3))
    ids = torch.tensor([encode_prompt(tokenizer, said, 0)])
    assert ids[0, 0] == tokenizer.bos_token_id
    new = model.generate(ids, do_sample=False, max_new_tokens=3)[0]
    assert answer == tokenizer.decode(new, skip_special_tokens=True).strip()
    assert session.conversation.get_prompt().startswith(said.get_prompt())


def test_a_model_type_has_one_template(own_template: Template) -> None:
    """And those of the library's templates are those of its families."""
    templates = {one.name: one for one in TEMPLATES.values() if one is not own_template}
    taken = [name for one in templates.values() for name in one.model_types]
    assert len(taken) == len(set(taken))
    published = {"llava_qwen", "llava_gemma"}  # the types of LLaVA-NeXT's folders
    assert set(taken) <= {family.llava_type for family in FAMILIES} | published
    other = Template("other_falcon", own_template.conversation, ("llava_x", "llava_falcon"))
    with pytest.raises(UserError, match="of type 'llava_falcon', which 'falcon_it' has taken"):
        lib.register_template(other)
    assert "other_falcon" not in lib.conv_templates


def test_a_new_version_goes_by_its_own_style(variant_tokenizer: Callable[..., Any]) -> None:
    tokenizer = variant_tokenizer("plain")
    conv = Conversation("S", ("USER", "ASSISTANT"), [], 0, SeparatorStyle.TWO, " ", "</s>", "mine")
    assert _learned(conv, tokenizer, "reference") == "Aredcat.</s>Adog.</s>"


@pytest.mark.parametrize(
    ("style", "sep", "version", "message"),
    [
        ("CHATML", "###", "mine", "sep_style is 'CHATML'; use a SeparatorStyle"),
        (SeparatorStyle.SINGLE, "|", "mine", "separates turns with '|'"),
        (SeparatorStyle.SINGLE, "###", "mpt", "change one of the two"),
        (SeparatorStyle.MPT, "###", "v1", "change one of the two"),
    ],
)
def test_unknown_rules_stop(
    style: Any, sep: str, version: str, message: str, variant_tokenizer: Callable[..., Any]
) -> None:
    conv = Conversation("S", ("A", "B"), [], 0, style, sep, None, version)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        preprocess([TURNS], variant_tokenizer("plain"), False, conv)


def test_versions() -> None:
    assert [lib.key_for_training(one) for one in ("v0", "v0.5", "v1")] == ["vicuna_v1", "vicuna_v1", "v1"]
    with pytest.raises(UserError, match=r"--version is 'lava_v1'; .*vicuna_v1; did you mean 'llava_v1'"):
        lib.key_for_training("lava_v1")


def test_an_unknown_template_of_a_checkpoint_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="llava"):
        assert pick_conv_mode(None, "llava-v1.5", {"conv_template": "nonsense"})[0] == "llava_v1"
    assert len(caplog.records) == 1
    assert "'nonsense', which is no template here; using llava_v1 (the known ones are" in caplog.text


def test_dialogs_that_a_template_cannot_hold() -> None:
    assert find_template("v1").check_dialog(TURNS) is None
    assert "found 4 turns" in str(find_template("plain").check_dialog(TURNS))
    assert "found none" in str(find_template("plain").check_dialog(TURNS[:2]))
    assert "must alternate" in str(find_template("mpt").check_dialog(TURNS[:1] * 2))
    assert find_template("v0").check_dialog(TURNS[:1] * 2) is None
    with pytest.raises(DataError, match="record 1: the plain template needs one question .* found 4 turns"):
        caption = dialog(("human", "<image>"), ("gpt", "A cat."))
        check_dialogs([{"conversations": caption}, {"conversations": TURNS}], "plain")
