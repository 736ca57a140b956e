"""load_tokenizer: the token ids and texts that checkpoints were trained with, on today's transformers.

transformers 5 rebuilds every tokenizer on its Rust library. For Llama's tokenizer.model that changes the ids
of most prompts: leading spaces, runs of spaces, text after a special token; everything when config.json says
"mistral". So Llama-type folders are encoded with sentencepiece here, as the slow tokenizer of transformers
4.37 did.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_python import Trie
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llava._compat import added_tokens, cached_hub_file, trie_tokens
from llava.atomic import atomic_file, write_text
from llava.model.checkpoints.files import CheckpointError, find_file, read_json, refuse_pointer

logger = logging.getLogger(__name__)

SPACE = "\u2581"  # sentencepiece writes a space as this character
MODEL_FILE = "tokenizer.model"
FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"

# names of tokenizer_class that mean Llama's tokenizer.model; folders of the first releases name none
_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", None)
_NEOX_CLASSES = ("GPTNeoXTokenizer", "GPTNeoXTokenizerFast")
# options that say where files come from, not what the tokenizer does
_HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only", "force_download", "proxies")


def load_tokenizer(path: str | Path, use_fast: bool = False, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder or hub repository.

    Llama-type folders (with tokenizer.model) give the ids of the reference's slow tokenizer and GPT-NeoX
    folders those of its fast one; `use_fast` is accepted because callers pass it and decides nothing. Other
    folders go to AutoTokenizer, which is logged. Keyword arguments are those of from_pretrained
    (model_max_length, padding_side, cache_dir...); padding_side is "right" unless the folder or the caller
    says otherwise. Raises CheckpointError.
    """
    hub = {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key)}
    config = _read_config(path, hub)
    kind = config.get("tokenizer_class")
    model_file = _find(path, MODEL_FILE, hub)
    if "padding_side" not in config:
        kwargs.setdefault("padding_side", "right")
    if kind in _LLAMA_CLASSES and model_file:
        refuse_pointer(Path(model_file))
        # transformers drops these two settings of a folder that also holds a tokenizer.json
        for key in ("add_bos_token", "add_eos_token"):
            if config.get(key) is not None:
                kwargs.setdefault(key, config[key])
        # named, because transformers may pick a tokenizer.model.v3 that lies beside it
        return _load(LlamaTokenizer, path, {**kwargs, "vocab_file": model_file})
    if kind in _NEOX_CLASSES and _find(path, FAST_FILE, hub) is not None:
        return _load_neox(path, config, kwargs)
    if kind in _LLAMA_CLASSES and not any(_find(path, name, hub) for name in (FAST_FILE, "vocab.json")):
        raise CheckpointError(
            f"{path} has no tokenizer: looked for {MODEL_FILE}, {FAST_FILE} and vocab.json. A folder with "
            "only a projector or an adapter takes the tokenizer of its base model; else copy the files there."
        )
    if kind in _LLAMA_CLASSES:
        reason = f"it has no {MODEL_FILE}; leading and repeated spaces may give other ids than the reference"
    else:
        reason = f"its tokenizer class is {kind}"
    logger.warning("the tokenizer of %s is loaded by AutoTokenizer: %s", path, reason)
    tokenizer = _load(AutoTokenizer, path, {**kwargs, "use_fast": use_fast})
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        # AutoTokenizer makes such a thing of a folder without vocabulary; embeddings would shrink to it
        raise CheckpointError(
            f"The tokenizer of {path} knows special tokens only; copy the original's {MODEL_FILE} (or "
            f"{FAST_FILE}) there."
        )
    return tokenizer


def _load_neox(path: str | Path, config: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    # decoded " ," becomes ",": what was trained and evaluated with, and what transformers 5 wants said twice
    kwargs.setdefault("clean_up_tokenization_spaces", config.get("clean_up_tokenization_spaces", True))
    kwargs.setdefault("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    tokenizer = _load(GPTNeoXTokenizer, path, kwargs)
    for name in ("bos_token", "eos_token", "unk_token"):
        if getattr(tokenizer, name) is None:
            setattr(tokenizer, name, "<|endoftext|>")
    return tokenizer


def _load(loader: type[PreTrainedTokenizerBase], path: str | Path, kwargs: dict[str, Any]) -> Any:
    try:
        return loader.from_pretrained(str(path), **kwargs)
    except Exception as error:  # on damaged files each library raises its own kind, down to bare Exception
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"The tokenizer of {path} does not load ({type(error).__name__}: {reason}). "
            f"Copy {MODEL_FILE} or {FAST_FILE}, {CONFIG_FILE} and {SPECIAL_FILE} again from the original."
        ) from error


def _find(path: str | Path, name: str, hub: dict[str, Any]) -> str | None:
    """Return the local path of a file of a folder or hub repository, None if it is not there."""
    if not hub or Path(path).is_dir():
        found = find_file(path, name)
        return str(found) if found else None
    try:
        return cached_hub_file(str(path), name, **hub)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} is no folder, and the hub did not give its {name}: {first}") from error


def _read_config(path: str | Path, hub: dict[str, Any]) -> dict[str, Any]:
    """Read tokenizer_config.json, {} if there is none."""
    file = _find(path, CONFIG_FILE, hub)
    if file is None:
        return {}
    return read_json(Path(file))


class AddedTokenSplitter(Trie):
    """Cuts a text at the added tokens, as Trie does: leftmost first, longest of those that begin there.

    Trie walks through every character in Python. When no token contains a character that another one begins
    with, which holds for every known checkpoint, a regular expression finds the same cuts much faster.
    """

    _pattern: re.Pattern[str] | None = None

    def add(self, word: str) -> None:
        super().add(word)
        self._pattern = None

    def split(self, text: str) -> list[str]:
        """Cut a text into added tokens and the pieces between them; joined they are the text."""
        if self._pattern is None:
            words = sorted(self._tokens, key=len, reverse=True)
            firsts = {word[0] for word in words}
            if not words or any(char in firsts for word in words for char in word[1:]):
                return super().split(text)
            self._pattern = re.compile("(" + "|".join(map(re.escape, words)) + ")")
        return [piece for piece in self._pattern.split(text) if piece]


class LlamaTokenizer(SentencePieceBackend):
    """Llama's tokenizer with the ids and texts of the slow one of transformers 4.37.

    legacy: the older treatment of spaces after special tokens; a folder that does not say means True. The
    class name is what `tokenizer_config.json` names, so that saved folders load elsewhere.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"

    def __init__(
        self,
        vocab_file: str,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        legacy: bool | None = None,
        **kwargs: object,
    ) -> None:
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        super().__init__(
            vocab_file=vocab_file,
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            legacy=True if legacy is None else bool(legacy),
            **kwargs,
        )
        self.tokens_trie: Trie = AddedTokenSplitter(trie_tokens(self.tokens_trie))
        self._piece_ids = {self.sp_model.id_to_piece(i): i for i in range(self.sp_model.get_piece_size())}
        self._model_bytes = Path(vocab_file).read_bytes()

    def tokenize(self, text: str, **kwargs: object) -> list[str]:
        """Cut a text into pieces; unless legacy, one space goes in front of the text and none inside it."""
        if self.legacy or not text:
            return super().tokenize(text, **kwargs)
        pieces = super().tokenize(SPACE + text.replace(SPACE, " "), **kwargs)
        if len(pieces) > 1 and pieces[0] == SPACE and pieces[1] in self.all_special_tokens:
            return pieces[1:]
        return pieces

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return the id of a piece or the ids of a list of pieces."""
        if isinstance(tokens, str):
            return super().convert_tokens_to_ids(tokens)
        added, pieces, unknown = added_tokens(self), self._piece_ids, self.sp_model.unk_id()
        return [added[token] if token in added else pieces.get(token, unknown) for token in tokens]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Add the start and end tokens that this tokenizer adds, to one text or to each of two."""
        head = [self.bos_token_id] if self.add_bos_token else []
        tail = [self.eos_token_id] if self.add_eos_token else []
        first = head + token_ids_0 + tail
        return first if token_ids_1 is None else first + head + token_ids_1 + tail

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Mark the start and end tokens that build_inputs_with_special_tokens adds with 1."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        head, tail = [1] * bool(self.add_bos_token), [1] * bool(self.add_eos_token)
        first = head + [0] * len(token_ids_0) + tail
        return first if token_ids_1 is None else first + head + [0] * len(token_ids_1) + tail

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to a text; special tokens stay as they are, in legacy mode with a space in front."""
        if not tokens:
            return ""
        special = set(self.all_special_tokens)
        text, run, after_special = "", [], False
        for index, token in enumerate([tokens[0].removeprefix(SPACE), *tokens[1:]]):
            if token not in special:
                run.append(token)
                after_special = False
                continue
            # the space goes in front of the text that this token ends, as in transformers 4.37
            if self.legacy and index and not after_special:
                text += " "
            text += self.sp_model.decode(run) + token
            run, after_special = [], True
        return text + self.sp_model.decode(run)

    def _decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: object,
    ) -> str:
        """Turn ids into text; added tokens stand apart from the text around them by spaces."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        special = set(self.all_special_tokens)
        named = {self.bos_token, self.eos_token, self.unk_token, self.pad_token}
        apart = {
            token
            for token, index in added_tokens(self).items()
            if token not in special or (token not in named and index >= self.vocab_size)
        }
        parts: list[str] = []
        run: list[str] = []
        for token in self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens):
            if token not in apart:
                run.append(token)
                continue
            parts += [text for text in [self.convert_tokens_to_string(run)] if text]
            parts.append(token)
            run = []
        if run:
            parts.append(self.convert_tokens_to_string(run))
        text = (" " if spaces_between_special_tokens else "").join(parts)
        wanted = clean_up_tokenization_spaces
        clean = self.clean_up_tokenization_spaces if wanted is None else wanted
        return self.clean_up_tokenization(text) if clean else text

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write tokenizer.model as it was read, also when the folder it came from is gone."""
        file = Path(save_directory, f"{filename_prefix}-{MODEL_FILE}" if filename_prefix else MODEL_FILE)
        with atomic_file(file) as scratch:
            scratch.write_bytes(self._model_bytes)
        return (str(file),)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Write a folder that load_tokenizer and transformers from 4.31 on read with the same ids."""
        kwargs.setdefault("save_jinja_files", False)  # older versions look for the template in the config
        files = super().save_pretrained(save_directory, **kwargs)
        settings = {key: getattr(self, key) for key in ("add_bos_token", "add_eos_token", "legacy")}
        return (*files, *_finish_saving(self, save_directory, kwargs.get("filename_prefix"), settings))


class GPTNeoXTokenizer(PreTrainedTokenizerFast):
    """GPT-NeoX's tokenizer, which MPT uses: tokenizer.json as it is; padding only if the folder names it.

    The class of transformers 5 builds its own normalizer instead and pads with <|padding|>. There must be no
    __init__ here, or transformers would take the file apart for this class as well.
    """

    vocab_files_names = {"tokenizer_file": FAST_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> tuple[str, ...]:
        """Write a folder that 4.37 reads as well: the merges of tokenizer.json as "a b", not ["a", "b"]."""
        kwargs.setdefault("save_jinja_files", False)
        files = super().save_pretrained(save_directory, **kwargs)
        prefix = kwargs.get("filename_prefix")
        file = Path(save_directory, f"{prefix}-{FAST_FILE}" if prefix else FAST_FILE)
        content = json.loads(file.read_text(encoding="utf-8"))
        merges = content["model"]["merges"]
        content["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        write_text(file, json.dumps(content, ensure_ascii=False, indent=2))
        return (*files, *_finish_saving(self, save_directory, prefix, {}))


def _finish_saving(
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    prefix: str | None,
    settings: dict[str, Any],
) -> tuple[str, ...]:
    """Write what transformers 5 leaves out of a saved folder and 4.37 needs. Returns the files added."""
    lead = f"{prefix}-" if prefix else ""
    file = Path(folder, lead + CONFIG_FILE)
    config = {**json.loads(file.read_text(encoding="utf-8")), **settings}
    for passing in ("backend", "is_local", "local_files_only"):  # how it was loaded, not what it is
        config.pop(passing, None)
    extra = config.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        config["additional_special_tokens"] = extra  # the name that all versions read
    elif extra:
        config["extra_special_tokens"] = extra
    write_text(file, json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    special.pop("extra_special_tokens", None)
    special = {key: str(token) for key, token in special.items() if token}
    if isinstance(extra, list) and extra:
        special["additional_special_tokens"] = [str(token) for token in tokenizer.extra_special_tokens]
    target = Path(folder, lead + SPECIAL_FILE)
    write_text(target, json.dumps(special, ensure_ascii=False, indent=2) + "\n")
    return (str(target),)
