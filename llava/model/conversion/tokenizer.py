"""Tokenizers of llava-hf folders: a tokenizer.json with the ids of LLaVA's tokenizer, and the way back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.atomic import atomic_file, write_text
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
)
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.multimodal.config import MultimodalConfig
from llava.model.tokenizer import (
    CONFIG_FILE,
    FAST_FILE,
    MODEL_FILE,
    SPACE,
    SPECIAL_FILE,
    LlamaTokenizer,
    load_tokenizer,
)
from llava.protocols import Tokenizer
from llava.utils import import_optional

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD_TOKEN = "<pad>"
_NORMAL, _USER_DEFINED, _BYTE, _BPE = (
    1,
    4,
    6,
    2,
)  # types of sentencepiece_model.proto


def llava_tokenizer(path: str, config: object) -> Any:
    """Load the tokenizer of a LLaVA with the tokens that its loader adds (`mm_use_im_*`)."""
    tokenizer = load_tokenizer(path)
    settings = MultimodalConfig.of(config)
    if settings.use_im_patch_token:
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if settings.use_im_start_end:
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    return tokenizer


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, *, videos: bool = False) -> Any:
    """Add `<image>` and, as llava-hf does, a padding token of its own; returns the tokenizer.

    It then has `image_token_id`, and with `videos` also `<video>` and `video_token_id`. A padding token that
    is no other special token stays.
    """
    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    if videos:
        tokenizer.add_tokens([DEFAULT_VIDEO_TOKEN], special_tokens=True)
        tokenizer.video_token_id = tokenizer.convert_tokens_to_ids(DEFAULT_VIDEO_TOKEN)
    if tokenizer.pad_token in (None, tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    return tokenizer


def save_for_hf(tokenizer: Tokenizer, folder: Path, chat_template: str) -> None:
    """Write the files of a tokenizer so that AutoTokenizer of transformers 4 and 5 gives LLaVA's ids.

    With a tokenizer.model it is a tokenizer.json that reproduces the slow tokenizer, named by the class that
    every version reads it with as it is; other tokenizers already are a tokenizer.json.
    """
    tokenizer.chat_template = chat_template
    tokenizer.padding_side = "left"  # what answering batches needs; llava-hf's folders say so too
    tokenizer.save_pretrained(folder)
    config_file, fast_file = folder / CONFIG_FILE, folder / FAST_FILE
    config = files.read_json(config_file)
    for passing in ("backend", "is_local", "local_files_only"):  # how it was loaded, not what it is
        config.pop(passing, None)
    if isinstance(tokenizer, LlamaTokenizer):
        content = json.loads(fast_tokenizer(tokenizer).to_str())
        for token in config.get("added_tokens_decoder", {}).values():
            token["normalized"] = not tokenizer.legacy  # as in the tokenizer.json
    else:
        content = files.read_json(fast_file)
    merges = content["model"].get("merges", ())
    if not any(" " in part for pair in merges for part in pair if not isinstance(pair, str)):
        # as text, not as pairs: transformers 4.37 reads no others
        content["model"]["merges"] = [one if isinstance(one, str) else " ".join(one) for one in merges]
    _write_json(fast_file, content)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["chat_template"] = chat_template
    _write_json(config_file, config)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_text(file, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


# ------------------------------------------------------------------------------------------- tokenizer.json


def fast_tokenizer(tokenizer: LlamaTokenizer) -> Any:
    """Build a `tokenizers.Tokenizer` with the ids of a Llama tokenizer that knows `<image>`.

    A whole prompt gets the ids that LLaVA gives the texts between its images one by one. One text differs: a
    lone added token that is not special (`<im_start>` and nothing else) has no space piece in front.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, processors
    from tokenizers.models import BPE

    pieces, adds_space = _pieces(tokenizer)
    vocabulary = {piece.piece: index for index, piece in enumerate(pieces)}
    model = BPE(
        vocab=vocabulary,
        merges=_merges(pieces, vocabulary),
        unk_token=tokenizer.unk_token,
        fuse_unk=True,
        byte_fallback=True,
    )
    fast = Tokenizer(model)
    added = sorted(tokenizer.added_tokens_decoder.items())
    whole = [piece.piece for piece in pieces if piece.type == _USER_DEFINED]
    fast.normalizer = _normalizer(tokenizer, [*whole, *(token.content for _, token in added)], adds_space)
    if whole:  # sentencepiece never cuts them
        fast.add_tokens([AddedToken(text, normalized=True) for text in whole])
    for index, token in added:
        same = AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            # legacy: the tokens cut the text before each piece is normalised for itself; else the rules below
            # have to see what stands in front of a piece
            normalized=not tokenizer.legacy,
            special=token.special,
        )
        (fast.add_special_tokens if token.special else fast.add_tokens)([same])
        if fast.token_to_id(token.content) != index:
            raise CheckpointError(
                f"The tokenizer gives {token.content!r} the id {index}, but ids before it are unused; "
                "transformers' tokenizer.json has no place for that."
            )
    space = decoders.Replace(SPACE, " ")
    fast.decoder = decoders.Sequence(
        [space, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    head = f"{tokenizer.bos_token} " * tokenizer.add_bos_token
    tail = f" {tokenizer.eos_token}" * tokenizer.add_eos_token
    ends = [(tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{head}$A{tail}", pair=f"{head}$A{tail} {head}$B{tail}", special_tokens=ends
    )
    return fast


def _pieces(tokenizer: LlamaTokenizer) -> tuple[list[Any], bool]:
    """Read the pieces of a tokenizer.model, and whether it puts a space in front of a text.

    Raises CheckpointError for a kind that Llama's is not.
    """
    import_optional("google.protobuf", needed_for="writing a tokenizer.json", install="protobuf")
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer._model_bytes)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    found = {
        "a unigram model": trainer.model_type != _BPE,
        "no byte fallback": not trainer.byte_fallback,
        "a normalisation of its own": bool(normalizer.precompiled_charsmap),
        "spaces removed": normalizer.remove_extra_whitespaces,
        "pieces of the user with legacy spaces": tokenizer.legacy
        and any(piece.type == _USER_DEFINED for piece in model.pieces),
    }
    if any(found.values()):
        kinds = ", ".join(name for name, is_so in found.items() if is_so)
        raise CheckpointError(
            f"The {MODEL_FILE} has {kinds}; only tokenizers of Llama's kind can be written as {FAST_FILE}."
        )
    return list(model.pieces), normalizer.add_dummy_prefix


def _merges(pieces: list[Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """List the merges in the order in which sentencepiece prefers them: by score, then by id."""
    parts = {piece.piece for piece in pieces if piece.type in (_NORMAL, _BYTE)}
    ranked = []
    for index, piece in enumerate(pieces):
        text = piece.piece
        if piece.type != _NORMAL or len(text) < 2:
            continue
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in parts and pair[1] in parts]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        ranked += [((-piece.score, index, place), pair) for place, pair in enumerate(known)]
    return [pair for _, pair in sorted(ranked)]


def _normalizer(tokenizer: LlamaTokenizer, added: list[str], adds_space: bool) -> Any:
    """Put the space pieces where LLaVA's tokenizer has them.

    Legacy: in front of every text between added tokens, if the model does so (`adds_space`). Else at the
    start of the prompt and after `<image>`, which begin texts that are encoded one by one, unless a special
    token follows.
    """
    from tokenizers import Regex, normalizers

    spaces = normalizers.Replace(" ", SPACE)
    if tokenizer.legacy:
        return normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if adds_space else spaces
    special = _any([*tokenizer.all_special_tokens, DEFAULT_IMAGE_TOKEN])
    image = re.escape(DEFAULT_IMAGE_TOKEN)
    # added tokens are normalised as well, to be found in normalised texts: alone they have to stay as they
    # are
    start = Regex(rf"\A(?!{special}|(?:{_any(added)})\z|\z)")
    after_image = Regex(rf"{image}(?!{special}|\z)")
    return normalizers.Sequence(
        [
            normalizers.Replace(start, SPACE),
            normalizers.Replace(after_image, DEFAULT_IMAGE_TOKEN + SPACE),
            spaces,
        ]
    )


def _any(texts: list[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(set(texts), key=len, reverse=True))


# ------------------------------------------------------------------------------------------- the way back


def from_hf_tokenizer(path: str, folder: Path, image_token_id: int) -> Any:
    """Write LLaVA's tokenizer to `folder`, without `<image>`, `<video>` and the padding behind them;
    returns it.

    Made from the tokenizer.model of a llava-hf folder; one that was saved by transformers 5 has only a
    tokenizer.json, which is taken as it is but for these tokens.
    """
    config_file = files.find_file(path, CONFIG_FILE)
    config = files.read_json(config_file) if config_file else {}
    model_file = files.find_file(path, MODEL_FILE)
    if model_file is not None:
        return _from_model_file(model_file, path, folder, config, image_token_id)
    fast_file = files.find_file(path, FAST_FILE)
    if fast_file is None:
        raise CheckpointError(f"{path} has no tokenizer: looked for {MODEL_FILE} and {FAST_FILE}.")
    content = files.read_json(fast_file)
    added = content["added_tokens"]
    last = _last_kept({token["id"]: token for token in added}, len(content["model"]["vocab"]), image_token_id)
    content["added_tokens"] = [token for token in added if token["id"] <= last]
    _write_json(folder / FAST_FILE, content)
    named = {name: _text(config.get(name)) for name in (*_NAMED, "pad_token")}
    texts = {token["content"] for token in content["added_tokens"]} | set(content["model"]["vocab"])
    if named["pad_token"] not in texts:
        named["pad_token"] = named["unk_token"] or named["eos_token"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{name: config[name] for name in ("model_max_length", "legacy") if config.get(name) is not None},
        **{name: text for name, text in named.items() if text is not None},
    }
    _write_json(folder / CONFIG_FILE, settings)
    return load_tokenizer(folder)


_NAMED = ("bos_token", "eos_token", "unk_token")


def _from_model_file(model_file: Path, path: str, folder: Path, config: dict[str, Any], image: int) -> Any:
    from sentencepiece import SentencePieceProcessor

    stored = {int(index): token for index, token in (config.get("added_tokens_decoder") or {}).items()}
    added_file, special_file = (files.find_file(path, name) for name in ("added_tokens.json", SPECIAL_FILE))
    if not stored and added_file:
        texts = files.read_json(added_file)
        stored = {index: {"content": text, "special": True} for text, index in texts.items()}
    pieces = SentencePieceProcessor(model_file=str(model_file))
    last = _last_kept(stored, len(pieces), image)
    kept = {str(index): {**token, "normalized": False} for index, token in stored.items() if index <= last}
    special = {**(files.read_json(special_file) if special_file else {}), **config}
    padding = _text(special.get("pad_token"))
    known = padding in {token["content"] for token in kept.values()} or padding in (
        pieces.id_to_piece(index) for index in range(len(pieces))
    )
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": kept,
        **{name: config[name] for name in _SETTINGS if config.get(name) is not None},
        **{name: _text(special[name]) for name in _NAMED if special.get(name)},
        "pad_token": padding if known else _text(special.get("unk_token")) or "<unk>",
    }
    with atomic_file(folder / MODEL_FILE) as scratch:
        shutil.copyfile(model_file, scratch)
    _write_json(folder / CONFIG_FILE, settings)
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(folder)  # with the files that older versions look for
    return tokenizer


_SETTINGS = ("legacy", "add_bos_token", "add_eos_token", "model_max_length")


def _text(token: object) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _last_kept(added: dict[int, Any], pieces: int, image_token_id: int) -> int:
    """Return the id of the last token that stays: those behind it are of media and padding only.

    added: the tokens by id; pieces: size of the vocabulary without them.
    """
    dropped = {DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN, PAD_TOKEN}
    kept = (i for i, token in added.items() if token["content"] not in dropped or i < image_token_id)
    return max([pieces - 1, *kept])
