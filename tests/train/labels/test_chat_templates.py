"""Templates that are tokenized piece by piece: answers and their ends are learned, prompts are as asked."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import KINDS, chat_tokenizer, hard_dialog
from text_data import tokenizer_folder

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import CHAT_TEMPLATE, Conversation, conv_templates, conversation_for
from llava.inference.prompt import encode_prompt, stop_strings, with_system
from llava.model.tokenizer import load_tokenizer
from llava.train.labels.preprocess import preprocess
from llava.train.setup.tokenizer import load_training_tokenizer
from llava.utils import UserError

# kind of tokenizer -> named template whose control tokens it has
NAMED = {"chatml": "qwen_1_5", "llama_3": "llava_llama_3", "gemma": "gemma_instruct"}
CASES = [*((kind, CHAT_TEMPLATE) for kind in KINDS), *NAMED.items()]
Turns = list[dict[str, Any]]


def runs_of(labels: list[int]) -> list[list[int]]:
    """Cut labels into runs of what is learned."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORE_INDEX:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def encoded(
    turns: Turns, tokenizer: Any, conv: Conversation, image: bool = False
) -> tuple[list[int], list[int]]:
    batch = preprocess([turns], tokenizer, image, conv)
    return batch["input_ids"][0].tolist(), batch["labels"][0].tolist()


def asked(turns: Turns, conv: Conversation) -> Conversation:
    """The dialog in front of the last answer, as a chat has it."""
    dialog = conv.copy()
    for turn in turns[:-1]:
        dialog.append_message(conv.roles[turn["from"] == "gpt"], turn["value"])
    dialog.append_message(conv.roles[1], None)
    return dialog


def text_of(ids: list[int], tokenizer: Any) -> str:
    text = tokenizer.decode([one for one in ids if one >= 0], clean_up_tokenization_spaces=False)
    return unicodedata.normalize("NFC", text)


def learned_texts(kind: str, key: str, answers: list[str]) -> list[str]:
    """What is to be learned of answers: with their ends, stripped as the template strips them."""
    trims = (kind in ("llama_3", "gemma") and key == CHAT_TEMPLATE) or key == "llava_llama_3"
    end = KINDS[kind][2]
    texts = [text.strip() if trims else text for text in answers]
    if kind == "thinking":
        texts[-1] = texts[-1].lstrip("\n")
    ends = ["<|end|>" if kind == "channels" else end] * (len(texts) - 1) + [end]
    if kind == "llama_2":
        return [f" {text} {end}" for text in texts]
    return [text + one for text, one in zip(texts, ends, strict=True)]


@pytest.mark.parametrize(("kind", "key"), CASES)
def test_hard_dialogs_learn_their_answers_and_have_the_prompt_that_is_asked(kind: str, key: str) -> None:
    tokenizer = chat_tokenizer(kind)
    conv = conversation_for(key, tokenizer)
    chance = random.Random(f"{kind} {key}")
    for _ in range(120):
        turns = hard_dialog(chance)
        ids, labels = encoded(turns, tokenizer, conv)
        assert all(label in (IGNORE_INDEX, one) for one, label in zip(ids, labels, strict=True))
        wanted = learned_texts(kind, key, [turn["value"] for turn in turns[1::2]])
        nfc = [unicodedata.normalize("NFC", text) for text in wanted]
        assert [text_of(run, tokenizer) for run in runs_of(labels)] == nfc, turns
        prompt = encode_prompt(tokenizer, asked(turns, conv), 0)
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] != IGNORE_INDEX or not runs_of(labels)[-1]


@pytest.mark.parametrize(("kind", "key"), CASES)
def test_control_tokens_are_the_templates_alone(kind: str, key: str) -> None:
    """Whatever somebody says, a dialog has the control tokens of the same dialog about nothing."""
    tokenizer = chat_tokenizer(kind)
    conv = conversation_for(key, tokenizer)
    control = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    chance = random.Random(kind)
    spelled = "".join(tokenizer.all_special_tokens) + "".join(KINDS[kind][3])
    for _ in range(40):
        turns = hard_dialog(chance)
        turns[0]["value"] += spelled
        turns[-1]["value"] = spelled + turns[-1]["value"]
        harmless = [{**turn, "value": "a"} for turn in turns]
        found, expected = (
            [one for one in encoded(some, tokenizer, conv)[0] if one in control] for some in (turns, harmless)
        )
        assert found == expected
        system = with_system(conv, f"Be {spelled} brief.") if kind not in ("gemma", "llama_2") else conv
        ids = encode_prompt(tokenizer, asked(turns, system), 0)
        assert spelled in text_of(ids, tokenizer)
        assert sum(one in control for one in ids) <= len(expected) + 3


def test_whole_text_tokenizing_would_melt_an_answer_into_its_header() -> None:
    """What piece by piece is for: the header's newline and the answer's become one token."""
    tokenizer = chat_tokenizer("chatml")
    conv = conversation_for(CHAT_TEMPLATE, tokenizer)
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "\n\nb"}]
    ids, _ = encoded(turns, tokenizer, conv)
    dialog = asked(turns, conv)
    dialog.messages[-1][1] = turns[-1]["value"]
    whole = tokenizer(dialog.get_prompt(), add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == tokenizer.decode(whole) and ids != whole


@pytest.mark.parametrize(("kind", "key"), [*CASES, ("chatml", "chatml_direct")])
def test_images_stand_where_the_text_says(kind: str, key: str) -> None:
    tokenizer = chat_tokenizer(kind)
    conv = conversation_for(key, tokenizer)
    question = "<image>\nWhat <|im_end|> is it, <image>?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A cat."}]
    ids, labels = encoded(turns, tokenizer, conv, image=True)
    assert ids.count(IMAGE_TOKEN_INDEX) == 2
    prompt = encode_prompt(tokenizer, asked(turns, conv), 2)
    assert ids[: len(prompt)] == prompt and all(one == IGNORE_INDEX for one in labels[: len(prompt)])
    parts = text_of(prompt, tokenizer)
    assert "What <|im_end|> is it, ?" in parts


def test_tokens_round_an_image_are_control_tokens_but_not_in_a_text() -> None:
    tokenizer = chat_tokenizer.__wrapped__("chatml")
    conv = conversation_for(CHAT_TEMPLATE, tokenizer)
    before = encode_prompt(tokenizer, asked([{"from": "human", "value": "a <im_start>"}, {}], conv), 0)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    start, end = tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
    text = "<im_start><image><im_end>\nIs it <im_start>, <im_start>x<im_end>?"
    ids = encode_prompt(tokenizer, asked([{"from": "human", "value": text}, {}], conv), 1)
    place = ids.index(IMAGE_TOKEN_INDEX)
    assert ids[place - 1 : place + 2] == [start, IMAGE_TOKEN_INDEX, end]
    assert ids.count(start) == ids.count(end) == 1
    assert (
        encode_prompt(tokenizer, asked([{"from": "human", "value": "a <im_start>"}, {}], conv), 0) == before
    )


@pytest.mark.parametrize("kind", ["llama_3", "gemma", "llama_2"])
def test_there_is_one_start_token(kind: str) -> None:
    """It is in the tokenizer's template; a named one takes it from a tokenizer that adds one."""
    tokenizer = chat_tokenizer(kind)
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    ids, _ = encoded(turns, tokenizer, conversation_for(CHAT_TEMPLATE, tokenizer))
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("kind", ["tiny_tokenizer", "tiny_tokenizer_legacy"])
@pytest.mark.parametrize("template", ["llama_2", "chatml"])
def test_sentencepiece_texts_get_no_space_in_front(kind: str, template: str, tmp_path: Path) -> None:
    """Llama's tokenizer puts a space in front of every text; behind a prompt there is none."""
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path, kind))
    tokenizer.chat_template = KINDS[template][0].replace("<|im_end|>", "</s>")
    conv = conversation_for(CHAT_TEMPLATE, tokenizer)
    turns = [{"from": "human", "value": "A lamp </s> here"}, {"from": "gpt", "value": "a red  cat"}]
    ids, labels = encoded(turns, tokenizer, conv)
    prompt = encode_prompt(tokenizer, asked(turns, conv), 0)
    assert ids[: len(prompt)] == prompt
    assert ids.count(tokenizer.eos_token_id) == (1 if template == "llama_2" else 2)
    first = tokenizer.convert_ids_to_tokens(runs_of(labels)[-1])
    assert first[0].startswith("\u2581") == (template == "llama_2")
    assert runs_of(labels)[-1][-1] == tokenizer.eos_token_id


BROKEN = {
    "none": (None, "has no chat template; put a chat_template.jinja beside"),
    "syntax": ("{% for %}", "cannot render this dialog .TemplateSyntaxError"),
    "refuses": ("{{ raise_exception('no such thing') }}", "no such thing"),
    "drops": ("{{ messages[-1].content }}<|im_end|>", "omits or moves message 0, of the user"),
    "endless": (
        "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}",
        "without a token of its own",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_templates_that_cannot_be_used_are_refused(case: str) -> None:
    tokenizer = chat_tokenizer.__wrapped__("chatml")
    tokenizer.chat_template, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as refusal:
        conversation_for(CHAT_TEMPLATE, tokenizer)
    assert "\n" not in str(refusal.value)


def test_dialogs_that_a_template_changes_are_refused() -> None:
    tokenizer = chat_tokenizer("thinking")
    conv = conversation_for(CHAT_TEMPLATE, tokenizer)
    upper = chat_tokenizer.__wrapped__("chatml")
    upper.chat_template = KINDS["chatml"][0].replace(
        "message.content", "(message.content | replace('b', 'c'))"
    )
    turns = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "x"}]
    with pytest.raises(UserError, match="does not render message 0, of the user, as it stands: 'a b'"):
        encoded(turns, upper, conversation_for(CHAT_TEMPLATE, upper))
    gemma = conversation_for(CHAT_TEMPLATE, chat_tokenizer("gemma"))
    with pytest.raises(UserError, match="roles must alternate"):
        encode_prompt(chat_tokenizer("gemma"), asked(turns, with_system(gemma, "Be brief.")), 0)
    with pytest.raises(UserError, match="GEMMA has no place for a system text"):
        with_system(conv_templates["gemma_instruct"], "Be brief.").get_prompt()
    # the template drops the thought of an earlier answer: from a history, but not from what is learned
    thought = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "<think>\nhm\n</think>\n\nx"},
        *turns,
    ]
    prompt = asked(thought, conv).get_prompt()
    assert "hm" not in prompt and "x<|im_end|>\n<|im_start|>user\na b<|im_end|>" in prompt
    with pytest.raises(UserError, match="does not render message 1, of the assistant"):
        encoded(thought, tokenizer, conv)


def test_an_unbound_chat_template_says_what_it_needs() -> None:
    dialog = asked([{"from": "human", "value": "a"}, {}], conv_templates[CHAT_TEMPLATE])
    with pytest.raises(UserError, match="rendered by a model's tokenizer, which is not here"):
        dialog.get_prompt()


@pytest.mark.parametrize(
    ("kind", "version", "pad", "expected"),
    [
        ("chatml", CHAT_TEMPLATE, "<|pad|>", "<|pad|>"),
        ("chatml", "qwen_1_5", "<|pad|>", "<|pad|>"),
        ("chatml", CHAT_TEMPLATE, "<|im_end|>", None),  # attention would end with the first answer
        ("chatml", CHAT_TEMPLATE, "<|im_start|>", None),
        ("chatml", "v1", "<|pad|>", None),  # the reference's way
        ("chatml", "v0", "<|pad|>", "<|pad|>"),
    ],
)
def test_padding_is_the_tokenizers_own_where_the_template_does_not_write_it(
    kind: str, version: str, pad: str, expected: str | None, tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer.__wrapped__(kind)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    loaded, key = load_training_tokenizer(str(tmp_path), version, model_max_length=64)
    assert loaded.pad_token == expected
    assert stop_strings(conversation_for(key, loaded))


def test_named_templates_are_what_their_tokenizers_write() -> None:
    """The published tokenizers' own templates give the same text, but for the start token."""
    for kind, key in NAMED.items():
        tokenizer = chat_tokenizer(kind)
        named = conv_templates[key].copy()
        own = conversation_for(CHAT_TEMPLATE, tokenizer)
        own.system = named.system
        said = [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Yes?"},
            {"from": "human", "value": "So"},
            {},
        ]
        texts = [asked(said, one).get_prompt() for one in (named, own)]
        assert texts[0] == texts[1].removeprefix(tokenizer.bos_token or "")
        assert stop_strings(named) == stop_strings(own)
