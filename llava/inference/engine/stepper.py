"""One step for many answers: a piece of the prompts that come in, and a token for each row that runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from transformers import Cache

from llava.inference.decoder import Key
from llava.inference.engine.kept import Found, Kept
from llava.inference.engine.kv import (
    Columns,
    bytes_of,
    copy_columns,
    last_columns,
    layers_of,
    new_cache,
    refuse_states,
    rows_of,
    stack,
    width_of,
)
from llava.inference.engine.prefill import ModelCall, Prefill
from llava.inference.engine.requests import OutOfMemory
from llava.inference.engine.row import Row, similar
from llava.inference.freshness import state_of
from llava.inference.model import LoadedModel
from llava.inference.sampling import choose_rows
from llava.utils import UserError


class Stepper:
    """Runs answers together; used by one thread.

    `begin` takes the rows of the next group, `step` computes a piece of their prompts and one token for each
    row that runs, and returns the rows that have ended. Rows join and leave between tokens.
    kept: the store of KV caches and image features. keep_answers: put ended dialogs into it. chunk: positions
    of a piece. contain: what goes wrong with some rows ends these, and is not raised; a lost device is.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        kept: Kept,
        *,
        chunk: int,
        keep_answers: bool,
        images_at_once: int | None = None,
        contain: bool = False,
    ) -> None:
        self.loaded, self.kept = loaded, kept
        self.chunk, self.keep_answers = chunk, keep_answers
        self.images_at_once, self.contain = images_at_once, contain
        self.rows: list[Row] = []  # that run
        self.again: list[Row] = []  # whose group failed: to be begun one by one
        refuse_states(loaded.model.config)
        self._call = ModelCall(loaded.model)
        self._cache: Cache | None = None  # of the rows that run
        self._prefill: Prefill | None = None
        self._state: Hashable = None  # of the model, when what is kept was computed
        self._states: dict[Row, Hashable] = {}  # when a row began

    @property
    def prefilling(self) -> list[Row]:
        """The rows whose prompts are on their way in."""
        return self._prefill.rows if self._prefill is not None else []

    @property
    def n_running(self) -> int:
        """How many answers run or are on their way in."""
        return len(self.rows) + sum(1 + len(one.copies) for one in self.prefilling)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the rows that run and of those on their way in."""
        caches = [self._cache, self._prefill.cache if self._prefill is not None else None]
        return sum(bytes_of(layers_of(one)) for one in caches if one is not None and width_of(one))

    def measure(self) -> int:
        """Return the bytes that one position takes in the cache, by running one token."""
        cache = new_cache()
        with torch.inference_mode():
            ids = torch.zeros((1, 1), dtype=torch.long, device=self.loaded.device)
            self._call(cache, [1], 1, input_ids=ids)
        return bytes_of(layers_of(cache))

    def notice_changes(self) -> None:
        """Forget what an earlier state of the model has computed."""
        state = state_of(self.loaded.model)
        if state != self._state:
            self.kept.forget()
            self._state = state

    def fits_group(self, group: Sequence[tuple[Row, Found]], row: Row, found: Found) -> bool:
        """Tell whether a row's prompt may be computed together with those of a group."""
        lengths = [one.n_prompt - there.n_positions for one, there in group]
        return similar(lengths, row.n_prompt - found.n_positions)

    def begin(self, group: Sequence[tuple[Row, Found]]) -> None:
        """Begin a group of rows, with what is kept of each; the group before must be through."""
        rows = [row for row, _ in group]
        self._states.update((row, self._state) for row in rows)
        try:
            self._prefill = Prefill(
                self.loaded,
                rows,
                [found for _, found in group],
                self.kept,
                call=self._call,
                chunk=self.chunk,
            )
        except torch.OutOfMemoryError as error:
            self._fail_group(rows, error)

    def step(self) -> list[Row]:
        """Compute a piece of the prompts and a token for each running row; return the rows that ended."""
        ended = self._advance() if self._prefill is not None else []
        ended += self._drop_cancelled()
        if self.rows:
            ended += self._decode()
        for row in ended:
            self._states.pop(row, None)
        return ended

    def _advance(self) -> list[Row]:
        """Compute a piece of the prompts; rows whose prompts are through begin to run."""
        prefill = self._prefill
        assert prefill is not None
        if all(one.cancelled for row in prefill.rows for one in (row, *row.copies)):
            self._prefill = None
            return [_cancelled(one) for row in prefill.rows for one in (row, *row.copies)]
        try:
            logits = prefill.advance(self.images_at_once if self.rows else None)
        except Exception as error:
            self._prefill = None
            if not self.contain or _is_lost(error):
                raise
            return self._fail_group(prefill.rows, error)
        if logits is None:
            return []
        self._prefill = None
        for place, row in enumerate(prefill.rows):
            if row.n_cached < (n_keep := row.ends[row.n_keep - 1] if row.n_keep else 0):
                start = width_of(prefill.cache) - row.n_prompt
                part = Columns(layers_of(prefill.cache), place, start, start + n_keep)
                self._put(row, row.keys[: row.n_keep], row.ends[: row.n_keep], part)
        rows, sources = [], []
        for place, row in enumerate(prefill.rows):
            for one in (row, *row.copies):
                one.cache, one.place, one.n_cached = prefill.cache, place, row.n_cached
                self._states[one] = self._states[row]
                rows.append(one)
                sources.append(place)
            row.copies = []
        if len(sources) > len(prefill.rows):
            logits = logits[sources]
        ended = self._take(rows, logits)
        self.rows += [one for one in rows if one.reason is None]
        return ended

    def _fail_group(self, rows: Sequence[Row], error: Exception) -> list[Row]:
        """Let the rows of a failed group be tried one by one; a lone one ends with the error."""
        if isinstance(error, torch.OutOfMemoryError):
            self._free_memory()
        if len(rows) > 1:
            self.again += rows
            return []
        if isinstance(error, torch.OutOfMemoryError):
            error = OutOfMemory(f"the device has too little memory for this request: {_brief(error)}")
        ended = [one for row in rows for one in (row, *row.copies)]
        for one in ended:
            one.fail(error)
        return ended

    def _free_memory(self) -> None:
        self.kept.forget()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _drop_cancelled(self) -> list[Row]:
        gone = [_cancelled(row) for row in self.rows if row.cancelled]
        for row in gone:
            self._keep(row)
        self._leave(gone)
        return gone

    def _decode(self) -> list[Row]:
        """Compute a token for each running row; return the rows that ended with it."""
        ended: list[Row] = []
        while self.rows:
            try:
                cache = self._packed()
                width = width_of(cache)
                try:
                    logits = self._feed(cache)
                except torch.OutOfMemoryError:
                    for layer in cache.layers:
                        layer.cut(width)
                    raise
            except torch.OutOfMemoryError as error:
                if not self.contain:
                    raise
                longest = max(self.rows, key=lambda one: one.length)
                ended += self._fail_group([longest], error)
                self._leave(ended)
                continue
            ended += self._take(self.rows, logits)
            self._leave(ended)
            break
        return ended

    def _feed(self, cache: Cache) -> torch.Tensor:
        """Feed the last token of each row; return the logits (B, vocab) after it."""
        with torch.inference_mode():
            ids = torch.tensor([[row.new_ids[-1]] for row in self.rows], device=self.loaded.device)
            return self._call(cache, [row.length + 1 for row in self.rows], 1, input_ids=ids)

    def _packed(self) -> Cache:
        """Return the cache of exactly the running rows, in their order, without columns of padding alone."""
        first = self.rows[0].cache
        assert first is not None
        in_place = all(row.cache is first and row.place == place for place, row in enumerate(self.rows))
        if not in_place or rows_of(first) != len(self.rows):
            parts = []
            for row in self.rows:
                assert row.cache is not None
                parts.append(last_columns(row.cache, row.place, row.length))
            with torch.inference_mode():
                first = stack(parts)
            for place, row in enumerate(self.rows):
                row.cache, row.place = first, place
        self._cache = first
        return first

    def _take(self, rows: Sequence[Row], logits: torch.Tensor) -> list[Row]:
        """Choose a token for each row from logits (B, vocab); return the rows that ended."""
        broken = logits.isnan().any(dim=-1) if self.contain else None
        if broken is not None and bool(broken.any()):
            places = [place for place, bad in enumerate(broken.tolist()) if bad]
            for place in places:
                rows[place].fail(UserError("the model's output is not a number (NaN) for this request"))
            logits = torch.where(broken[:, None], 0.0, logits)
        tokens = choose_rows([row.choose for row in rows], logits, [row.new_ids for row in rows])
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.reason is None:
                row.take(token, logits[place])
        ended = [row for row in rows if row.reason is not None]
        for row in ended:
            self._keep(row)
        return ended

    def _keep(self, row: Row) -> None:
        """Put the cache of an ended row into the store."""
        if row.cache is not None and self.keep_answers and row.error is None:
            self._put(row, *row.cached_keys(), last_columns(row.cache, row.place, row.length))
        row.cache = None

    def _put(self, row: Row, keys: list[Key], ends: list[int], part: Columns) -> None:
        """Put a part of a row's cache into the store, unless the model has changed since the row began."""
        size = sum(one[:1, :, :1].numel() * one.element_size() for pair in part.layers for one in pair)
        if self._states.get(row) == self._state and self.kept.fits(size * (part.end - part.start)):
            with torch.inference_mode():
                self.kept.put(keys, ends, copy_columns(part))

    def _leave(self, ended: Sequence[Row]) -> None:
        """Let rows go."""
        if ended:
            self.rows = [row for row in self.rows if row.reason is None]
            for row in ended:
                row.cache = None
            if not self.rows:
                self._cache = None


def _cancelled(row: Row) -> Row:
    if row.reason is None:
        row.finish("cancelled")
    return row


def _is_lost(error: Exception) -> bool:
    """Tell whether an error leaves the device unusable: every later call would fail as well."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return False
    told = ("CUDA error", "HIP error", "device-side assert")
    return isinstance(error, torch.AcceleratorError) or any(one in str(error) for one in told)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
