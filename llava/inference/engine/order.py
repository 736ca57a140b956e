"""The order of many prompts: one of those that begin alike goes ahead; the others find what it has left."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.decoder import Key, digest_of
from llava.inference.dialog import ImageSource, Prompt
from llava.inference.engine.kept import common_length

# A beginning of fewer positions is computed again.
LEAST_SHARED = 16


@dataclass(frozen=True)
class Place:
    """A prompt in its place.

    wave: prompts of one wave need nothing of each other. n_keep: so many keys at its beginning are kept for
    prompts of later waves. n_rest: positions that are computed when what it shares is found.
    """

    index: int
    prompt: Prompt
    wave: int
    n_keep: int
    n_rest: int


@dataclass(frozen=True)
class Group:
    """Prompts that begin alike, the longest first: their indices, and how much of each is shared."""

    indices: Sequence[int]
    n_keys: int = 0
    n_positions: int = 0


class Order:
    """Groups prompts that begin alike: with the same images up to the last one, and the text up to there.

    Images are told apart by their paths, those in memory by their content; none is opened.
    """

    def __init__(self, prompts: Mapping[int, Prompt]) -> None:
        self.prompts = prompts
        keys = {index: keys_of(one) for index, one in prompts.items()}
        self.n_common = _shared(list(keys.values()))  # keys that all of them begin with
        by_head: dict[tuple[Key, ...], list[int]] = {}
        for index in sorted(prompts, key=lambda one: -prompts[one].n_positions):
            by_head.setdefault(_head(keys[index]), []).append(index)
        self.groups = [self._group(some, keys) for some in by_head.values()]

    @property
    def shares(self) -> bool:
        """Whether any prompts begin alike."""
        return self._all_share or any(one.n_keys for one in self.groups)

    @property
    def _all_share(self) -> bool:
        return len(self.prompts) > 1 and self.n_common >= LEAST_SHARED

    def _group(self, indices: Sequence[int], keys: Mapping[int, Sequence[Key]]) -> Group:
        """Return prompts with the same head as a group, without a share if it is too short."""
        n_keys = _shared([keys[one] for one in indices]) if len(indices) > 1 else 0
        first = self.prompts[indices[0]]
        n_positions = first.n_positions - (len(first.ids) - n_keys)  # images are in front of what differs
        return (
            Group(indices, n_keys, n_positions) if n_keys and n_positions >= LEAST_SHARED else Group(indices)
        )

    def places(self, *, at_once: int, room: int | None = None) -> Iterator[Place]:
        """Yield the prompts, longer groups first, in rounds: one of each group, then the others of them.

        A round has at most `at_once` groups that share something, of at most `room` shared positions; what
        shares more than that is computed again. What all begin with is computed by the first prompt alone.
        """
        wave = 0
        for number, groups in enumerate(self._rounds(at_once, room)):
            leading = [
                Place(index, self.prompts[index], wave, group.n_keys, self.prompts[index].n_positions)
                for group in groups
                for index in (group.indices[:1] if group.n_keys else group.indices)
            ]
            if number == 0 and self._all_share:
                first = leading.pop(0)
                yield replace(first, n_keep=max(first.n_keep, self.n_common))
                wave += 1
            yield from (replace(one, wave=wave) for one in leading)
            following = [
                Place(
                    index,
                    self.prompts[index],
                    wave + 1,
                    0,
                    self.prompts[index].n_positions - group.n_positions,
                )
                for group in groups
                if group.n_keys
                for index in group.indices[1:]
            ]
            yield from sorted(following, key=lambda one: -one.n_rest)
            wave += 2

    def _rounds(self, at_once: int, room: int | None) -> Iterator[list[Group]]:
        """Yield the groups in rounds; those that share nothing are in the round of those around them."""
        groups: list[Group] = []
        n_sharing = n_positions = 0
        for group in self.groups:
            if room is not None and group.n_positions > room:
                group = Group(group.indices)
            fits = room is None or n_positions + group.n_positions <= room
            if group.n_keys and groups and (n_sharing >= at_once or not fits):
                yield groups
                groups, n_sharing, n_positions = [], 0, 0
            groups.append(group)
            n_sharing += group.n_keys > 0
            n_positions += group.n_positions
        if groups:
            yield groups


def keys_of(prompt: Prompt) -> list[Key]:
    """Return the ids of a prompt with what tells its unopened images apart in place of image tokens."""
    images = iter(prompt.images)
    return [_name_of(next(images)) if one == IMAGE_TOKEN_INDEX else one for one in prompt.ids]


def _name_of(source: ImageSource) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        return b"from " + os.fsencode(source)
    return digest_of(source)


def _head(keys: Sequence[Key]) -> tuple[Key, ...]:
    """Return a prompt's keys up to its last image."""
    last = next((place for place in reversed(range(len(keys))) if isinstance(keys[place], bytes)), -1)
    return tuple(keys[: last + 1])


def _shared(prompts: Sequence[Sequence[Key]]) -> int:
    """Return how many keys all prompts begin with; at least one of each is left over."""
    if not prompts:
        return 0
    first = prompts[0]
    shared = min(len(one) for one in prompts) - 1
    for one in prompts[1:]:
        shared = common_length(first[:shared], one, 0)
    return shared
