"""The scoring rules beside independent implementations, and beside values that were worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.eval.metrics.anls import anls, edit_distance
from llava.eval.metrics.relaxed import number_of, relaxed_accuracy, relaxed_match
from llava.eval.metrics.vqa import m4c_accuracy, m4c_answer, vqa_accuracy, vqa_answer
from llava.eval.metrics.words import bleu, exact_match, plain_words, word_f1

WORDS = st.sampled_from(["red", "Red.", "the red", "two", "2", "dont", "10,5", "no. 5", "a-b", "", "x, y"])
LETTERS = st.text(alphabet="abC ", max_size=7)


# ---- the VQA rule ----


@given(WORDS, st.lists(WORDS, min_size=10, max_size=10))
def test_ten_people_agree_by_the_mean_over_all_nine_of_them(said: str, people: list[str]) -> None:
    plain = [m4c_answer(one) for one in people]
    shares = [min(1.0, nine.count(m4c_answer(said)) / 3) for nine in combinations(plain, 9)]
    assert math.isclose(m4c_accuracy(said, people), sum(shares) / 10, abs_tol=1e-12)


@pytest.mark.parametrize("n, credit", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_credit_by_the_number_of_people(n: int, credit: float) -> None:
    people = ["yes"] * n + ["no"] * (10 - n)
    assert math.isclose(vqa_accuracy("Yes.", people), credit, abs_tol=1e-12)


def test_the_official_rule_leaves_the_words_of_people_alone() -> None:
    people = ["the dog"] * 9 + ["cat"]
    assert vqa_answer("the dog") == "dog"
    assert vqa_accuracy("the dog", people) == 0.0  # an article is removed from the prediction alone
    assert m4c_accuracy("the dog", people) == 1.0


def test_the_official_rule_cleans_people_only_where_they_differ() -> None:
    assert vqa_accuracy("x;y", ["x;y"] * 10) == 0.0  # the prediction is "x y", all people say "x;y"
    assert vqa_accuracy("x;y", ["x;y"] * 9 + ["z"]) == 1.0


@pytest.mark.parametrize(
    "text, plain",
    [
        ("It's", "it 's"),
        ("1,000 cats", "1000 cats"),
        ("Ten", "10"),
        ("couldnt", "couldn't"),
        ("10.5", "10.5"),
        ("U.S.A.", "usa"),
    ],
)
def test_answers_are_normalised(text: str, plain: str) -> None:
    assert m4c_answer(text) == plain


# ---- ANLS ----


@given(LETTERS, LETTERS)
def test_edit_distance_is_that_of_its_definition(one: str, other: str) -> None:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        swap = distance(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(swap, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    assert edit_distance(one, other) == distance(len(one), len(other))


@pytest.mark.parametrize(
    "said, accepted, score",
    [
        ("March  3", ["march 3"], 1.0),
        ("kitten", ["sitting"], 4 / 7),
        ("ab", ["cb"], 0.5),  # the threshold itself counts
        ("abc", ["xbz"], 0.0),
        ("x", ["yy", "x"], 1.0),
        ("", [""], 1.0),
        ("", ["a"], 0.0),
    ],
)
def test_anls(said: str, accepted: list[str], score: float) -> None:
    assert math.isclose(anls(said, accepted), score, abs_tol=1e-12)


# ---- charts ----


@pytest.mark.parametrize(
    "said, wanted, right",
    [
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("-9.5", "-10", True),
        ("5%", "0.05", True),
        ("5", "5%", False),
        ("0", "0", True),
        ("0.0", "0", False),  # to 0 no share can be told; the words are compared
        ("Blue", "blue ", True),
        ("1,000", "1000", False),
        ("nan", "NaN", True),
        ("inf", "10", False),
    ],
)
def test_relaxed_accuracy(said: str, wanted: str, right: bool) -> None:
    assert relaxed_match(said, wanted) is right
    assert relaxed_accuracy(said, ["something", wanted]) == float(right)


@given(st.floats(0.1, 1e6), st.floats(-0.2, 0.2))
def test_numbers_may_be_five_percent_off(value: float, off: float) -> None:
    said = value * (1 + off)
    near = abs(said - value) / value
    if abs(near - 0.05) > 1e-9:
        assert relaxed_match(repr(said), repr(value)) is (near < 0.05)


def test_what_is_no_number() -> None:
    assert [number_of(one) for one in ("", "%", "1e3", "two", "inf")] == [None, None, 1000.0, None, None]


# ---- words ----


@settings(max_examples=50, deadline=None)  # scikit-learn takes seconds to import
@given(*[st.lists(st.sampled_from("xyz"), min_size=1, max_size=6)] * 2)
def test_word_f1_is_that_of_scikit_learn(said: list[str], wanted: list[str]) -> None:
    """Each (word, n-th time) is an item that is there or not."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    items = sorted({(word, n) for word in "xyz" for n in range(6)})
    truth, found = (
        [Counter(words)[word] > n for word, n in items] for words in (wanted, said)
    )  # fmt: skip
    theirs = metrics.f1_score(truth, found)
    assert math.isclose(word_f1(" ".join(said), [" ".join(wanted)]), theirs, abs_tol=1e-12)


def test_words_are_plain() -> None:
    assert plain_words("The U.S. is a dog's home!") == ["us", "is", "dogs", "home"]
    assert word_f1("the", ["a"]) == 1.0 and word_f1("dog", ["the"]) == 0.0
    assert word_f1("red dog", ["cat", "dog"]) == pytest.approx(2 / 3)
    assert exact_match("dog", ["dog"]) == 1.0 and exact_match("Dog", ["dog"]) == 0.0


def test_bleu_by_hand() -> None:
    said = ["the cat sat on the mat today"]  # 7 words
    wanted = [["the cat sat on a mat today", "a cat is here"]]
    # 1-grams: "the" is clipped to one: 6/7; 2-grams 4/6; 3-grams 2/5; 4-grams 1/4
    assert bleu(said, wanted) == pytest.approx((6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    assert bleu(["a b c d"], [["a b c d e f"]]) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu(["a b c d"], [["a b c d"]]) == pytest.approx(1.0)
    assert bleu(["a b c"], [["a b c"]]) == 0.0  # no 4-gram, and nothing is smoothed
    two = bleu(["a b c d", "x y"], [["a b c d"], ["x z"]])  # the set is counted as a whole
    assert two == pytest.approx((5 / 6 * 3 / 4) ** 0.25)


@pytest.mark.parametrize(
    "rule", [anls, relaxed_accuracy, word_f1, vqa_accuracy, m4c_accuracy, lambda a, b: bleu([a], [b])]
)
def test_no_accepted_answer_is_an_error(rule) -> None:
    with pytest.raises(ValueError, match="answer"):
        rule("x", [])
