"""The tokenizer.json of an exported folder gives the ids of LLaVA's own tokenizer, and the way back too."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from text_data import DATA, KINDS, tokenizer_folder
from transformers import AutoTokenizer

from llava.mm_utils import tokenizer_image_token
from llava.model.checkpoints.files import CheckpointError
from llava.model.conversion.tokenizer import add_image_tokens, fast_tokenizer, from_hf_tokenizer, save_for_hf
from llava.model.tokenizer import load_tokenizer

TEXTS = json.loads((DATA / "tokenizer_ids.json").read_text(encoding="utf-8"))["texts"]
PIECES = [
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "USER:",
    " ASSISTANT: ",
    "</s>",
    "<s>",
    "<unk>",
    "<image>",
    "<im_start>",
    "<im_end>",
    "<|im_end|>",
    "é",
    "🙂",
    "한국",
    "=",
    "====",
    "!!!",
    "\t",
    "\u2581",
    "    ",
    "0",
    "123",
    "of the",
    " The",
    "...",
    "<",
]


def mixed_texts(count: int) -> list[str]:
    """Texts of random pieces, and long runs of one character."""
    chance = random.Random(0)
    mixed = ["".join(chance.choice(PIECES) for _ in range(chance.randint(1, 14))) for _ in range(count)]
    runs = [text for n in range(1, 40, 3) for text in (" " * n, f"a{' ' * n}b", "=" * n, "\n" * n, "a" * n)]
    return mixed + runs


def saved(folder: Path, kind: str) -> tuple[Any, Any, int]:
    """LLaVA's tokenizer of a kind, what AutoTokenizer loads from its export, and the image token's id."""
    tokenizer_folder(folder / "llava", kind)
    theirs = add_image_tokens(load_tokenizer(folder / "llava"))
    image = theirs.image_token_id
    save_for_hf(theirs, folder, "{{ messages }}")
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    return load_tokenizer(folder / "llava"), AutoTokenizer.from_pretrained(folder), image


def different(ours: Any, theirs: Any, image: int, texts: list[str]) -> list[Any]:
    pairs = ((text, tokenizer_image_token(text, ours, image), theirs(text).input_ids) for text in texts)
    return [(text, one, other) for text, one, other in pairs if one != other]


# what a lone added token looks like is the one known difference (fast_tokenizer)
LONE = {"<im_patch>", "<im_start>", "<im_end>", "<|im_start|>", "<|im_end|>", "kettle", "ket", "[PAD]"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("decoder_")])
def test_ids_are_those_of_the_texts_between_images(kind: str, tmp_path: Path) -> None:
    ours, theirs, image = saved(tmp_path, kind)
    texts = [*TEXTS, *(f"{a}<image>{b}" for a, b in zip(TEXTS, TEXTS[1:], strict=False)), *mixed_texts(600)]
    texts = [text for text in texts if text not in LONE]
    if kind == "eos":  # the end token that LLaVA then has in front of every image comes once, at the end
        texts = [text for text in texts if "<image>" not in text]
    assert not different(ours, theirs, image, texts)
    assert theirs.convert_ids_to_tokens(image) == "<image>"
    assert theirs.pad_token == "<pad>"
    assert len(theirs) == len(ours) + 2


def test_decoding_gives_the_text_back(tmp_path: Path) -> None:
    _, theirs, _ = saved(tmp_path, "tiny_tokenizer")
    for text in ("Hello  world", "a\n b", "naïve 한국 🙂"):
        assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == text


def test_the_files_are_what_every_version_reads(tmp_path: Path) -> None:
    saved(tmp_path, "tiny_tokenizer_imtokens")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (
        config["tokenizer_class"] == "PreTrainedTokenizerFast"
    )  # LlamaTokenizer is rebuilt by transformers 5
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["chat_template"] == "{{ messages }}"
    assert config["legacy"] is False
    assert config["padding_side"] == "left"
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert all(isinstance(pair, str) and pair.count(" ") == 1 for pair in merges)
    original = (tmp_path / "llava" / "tokenizer.model").read_bytes()
    assert (tmp_path / "tokenizer.model").read_bytes() == original  # for llama.cpp


def test_a_padding_token_of_its_own_stays(tmp_path: Path) -> None:
    _, theirs, image = saved(tmp_path, "decoder_True")
    assert (theirs.pad_token, theirs.pad_token_id, image) == ("[PAD]", 2004, 2005)


@pytest.mark.parametrize(
    "kind", ["tiny_tokenizer", "tiny_tokenizer_legacy", "tiny_tokenizer_imtokens", "eos"]
)
@pytest.mark.parametrize("with_model_file", [True, False])
def test_the_way_back_gives_the_first_tokenizer(kind: str, with_model_file: bool, tmp_path: Path) -> None:
    ours, _, image = saved(tmp_path, kind)
    if not with_model_file:  # as transformers 5 saves a tokenizer
        for name in ("tokenizer.model", "added_tokens.json", "special_tokens_map.json"):
            (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "back").mkdir()
    back = from_hf_tokenizer(str(tmp_path), tmp_path / "back", image)
    again = load_tokenizer(tmp_path / "back")
    texts = [text for text in [*TEXTS, *mixed_texts(100)] if "<image>" not in text and text not in LONE]
    for tokenizer in (back, again):
        assert len(tokenizer) == len(ours)
        assert [list(tokenizer(text).input_ids) for text in texts] == [
            list(ours(text).input_ids) for text in texts
        ]
        assert tokenizer.pad_token == ours.unk_token
        assert tokenizer.padding_side == "right"


def test_tokens_behind_the_image_token_keep_their_ids(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path / "llava")
    tokenizer = add_image_tokens(load_tokenizer(tmp_path / "llava"))
    tokenizer.add_tokens(["<box>"], special_tokens=True)  # by a later training, at 2002
    save_for_hf(tokenizer, tmp_path, "")
    (tmp_path / "back").mkdir()
    back = from_hf_tokenizer(str(tmp_path), tmp_path / "back", 2000)
    assert back.convert_tokens_to_ids(["<image>", "<pad>", "<box>"]) == [2000, 2001, 2002]
    assert len(back) == 2003


def changed_model(folder: Path, kind: str, change: Any) -> Path:
    """A tokenizer folder whose tokenizer.model is changed by `change(model)`."""
    from sentencepiece import sentencepiece_model_pb2

    tokenizer_folder(folder, kind)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    change(model)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


def no_space(model: Any) -> None:
    model.normalizer_spec.add_dummy_prefix = False


def own_pieces(model: Any) -> None:
    for index, text in ((700, "<|im_start|>"), (701, "<|im_end|>")):
        model.pieces[index].piece, model.pieces[index].type = text, 4


@pytest.mark.parametrize(
    ("kind", "change"),
    [("tiny_tokenizer", no_space), ("tiny_tokenizer_legacy", no_space), ("tiny_tokenizer", own_pieces)],
)
def test_other_models_of_llamas_kind(kind: str, change: Any, tmp_path: Path) -> None:
    """As Yi has them, the language model of LLaVA-1.6-34B."""
    ours = load_tokenizer(changed_model(tmp_path / "llava", kind, change))
    save_for_hf(add_image_tokens(load_tokenizer(tmp_path / "llava")), tmp_path, "")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, *mixed_texts(600), "<|im_start|>user\n<image>\na  b<|im_end|><|im_start|>assistant\n"]
    assert not different(ours, theirs, 2000, [text for text in texts if text not in LONE])
    (tmp_path / "back").mkdir()
    back = from_hf_tokenizer(str(tmp_path), tmp_path / "back", 2000)
    assert not different(ours, back, 2000, [text for text in texts if "<image>" not in text])


def test_added_tokens_inside_the_vocabulary_come_back(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path / "llava")
    file = tmp_path / "llava" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    piece = load_tokenizer(tmp_path / "llava").convert_ids_to_tokens(500)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    named = {str(index): {"content": text, **plain} for index, text in enumerate(("<unk>", "<s>", "</s>"))}
    config["added_tokens_decoder"] = {**named, "500": {"content": piece, **plain}}
    file.write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path / "llava")
    save_for_hf(add_image_tokens(load_tokenizer(tmp_path / "llava")), tmp_path, "")
    (tmp_path / "back").mkdir()
    back = from_hf_tokenizer(str(tmp_path), tmp_path / "back", 2000)
    assert back.added_tokens_decoder.keys() == ours.added_tokens_decoder.keys()
    text = f"a{piece}b {piece} c"
    assert back(text).input_ids == ours(text).input_ids


def test_other_kinds_of_tokenizer_model_are_refused(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    tokenizer = load_tokenizer(tokenizer_folder(tmp_path))
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer._model_bytes)
    model.trainer_spec.model_type = 1
    tokenizer._model_bytes = model.SerializeToString()
    with pytest.raises(CheckpointError, match="unigram"):
        fast_tokenizer(tokenizer)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        from_hf_tokenizer(str(tmp_path), tmp_path, 32000)
