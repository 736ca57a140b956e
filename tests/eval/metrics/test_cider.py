"""CIDEr-D: values that were worked out by hand, and what must hold of any captions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.eval.metrics.cider import caption_words, cider_d

WORDS = st.lists(st.sampled_from(["a", "dog", "runs", "red", "bus"]), min_size=1, max_size=7).map(" ".join)


def test_a_caption_worked_out_by_hand() -> None:
    """Two images, references "red bus" and "big dog"; each word and pair is in one image: weight log 2.

    "red dog" beside "red bus": single words (1, 1, 0) . (1, 0, 1) / 2 = 1/2, no pair in common, so a mean of
    1/8 over the four sizes; no difference of length. "big dog" is its reference: 1 of 1 for two sizes.
    """
    assert cider_d(["red dog", "big dog"], [["red bus"], ["big dog"]]) == pytest.approx([10 / 8, 10 * 2 / 4])


def test_words_that_all_images_have_weigh_nothing() -> None:
    """The word "a" is in both images: log(2 / 2) = 0; of "a dog" only "dog" and the pair count."""
    scores = cider_d(["a", "a dog"], [["a bus"], ["a dog"]])
    assert scores == pytest.approx([0.0, 10 * 2 / 4])


def test_words_said_again_are_clipped_and_length_is_punished() -> None:
    """Of "red red red" beside "red bus": min(3, 1) * 1 / (3 * sqrt 2); exp(-1 / 72) for one word more."""
    scores = cider_d(["red red red", "x"], [["red bus"], ["dog"]])
    assert scores[0] == pytest.approx(10 * math.exp(-1 / 72) * (1 / (3 * math.sqrt(2))) / 4)


def test_several_references_are_averaged() -> None:
    one = cider_d(["red bus", "x"], [["red bus"], ["dog"]])[0]
    both = cider_d(["red bus", "x"], [["red bus", "big cat"], ["dog"]])[0]
    assert both == pytest.approx(one / 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_scores_are_between_0_and_10_whatever_the_order(pairs: list[tuple[str, list[str]]]) -> None:
    scores = cider_d([one for one, _ in pairs], [some for _, some in pairs])
    assert all(-1e-9 <= one <= 10 + 1e-9 for one in scores)
    back = cider_d([one for one, _ in reversed(pairs)], [some[::-1] for _, some in reversed(pairs)])
    assert back[::-1] == pytest.approx(scores)


@pytest.mark.parametrize(
    "text, words",
    [
        ("A man's dog, isn't it?", ["a", "man", "'s", "dog", "is", "n't", "it"]),
        ("3,000 black-and-white cats.", ["3,000", "black-and-white", "cats"]),
        ("At 10:30 -- 2nd street", ["at", "10:30", "2nd", "street"]),
        ("they\u2019re \u201cred\u201d", ["they", "'re", "red"]),
        (" ?! ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert caption_words(text) == words


def test_a_caption_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        cider_d(["a"], [[]])
    assert cider_d([], []) == []
