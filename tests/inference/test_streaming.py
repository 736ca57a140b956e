"""TextStream: whole characters, no stop strings, and the pieces joined are the decoded text."""

import random

import pytest

from llava.inference.streaming import TextStream
from llava.model.tokenizer import load_tokenizer


class ByteTokenizer:
    """One id a UTF-8 byte; an unfinished character decodes to replacement characters, as in real ones."""

    clean_up_tokenization_spaces = False

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", errors="replace")


class CleaningTokenizer(ByteTokenizer):
    """Joins blanks and punctuation while decoding, as GPT-NeoX tokenizers of the reference do."""

    clean_up_tokenization_spaces = True

    def decode(self, ids, skip_special_tokens=True, clean_up_tokenization_spaces=True):
        text = super().decode(ids)
        if not clean_up_tokenization_spaces:
            return text
        for ending in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            text = text.replace(ending, ending.strip())
        return text


@pytest.mark.parametrize("folder", ["llava-tiny-v1.5", "llava-tiny-v1.6-mistral", "llava-tiny-mpt"])
def test_what_continues_a_text_keeps_its_blanks(folder, checkpoints):
    """Wherever a text is cut, its first half and what comes behind it are the text."""
    tokenizer = load_tokenizer(str(checkpoints / folder))
    ids = tokenizer("Hello the  wörld! 日本 é\n  two blanks \n ").input_ids
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert whole.endswith(" \n ") and len(ids) > 20
    for cut in range(1, len(ids)):
        stream = TextStream(tokenizer, before=ids[:cut])
        pieces = [*(stream.put(one) for one in ids[cut:]), stream.end()]
        front = tokenizer.decode(ids[:cut], skip_special_tokens=True).rstrip("\ufffd")
        assert front + "".join(pieces) == whole and stream.text == "".join(pieces)
        held = TextStream(tokenizer, before=ids[:cut])
        assert not any(held.hold(one) for one in ids[cut:]) and held.end() == stream.text


def test_a_long_continuation_keeps_its_blanks(checkpoints):
    tokenizer = load_tokenizer(str(checkpoints / "llava-tiny-v1.5"))
    ids = tokenizer("the end " * 300).input_ids
    stream = TextStream(tokenizer, before=ids[:3])
    pieces = [*(stream.put(one) for one in ids[3:]), stream.end()]
    assert tokenizer.decode(ids[:3], skip_special_tokens=True) + "".join(pieces) == "the end " * 300


def run(text, stop=(), tokenizer=None):
    """Feed a text byte by byte; return the stream and the text seen after each step."""
    stream = TextStream(tokenizer or ByteTokenizer(), stop)
    seen = [""]
    for byte in text.encode() if isinstance(text, str) else text:
        seen.append(seen[-1] + stream.put(byte))
        if stream.stopped:
            break
    seen.append(seen[-1] + stream.end())
    return stream, seen


def test_pieces_joined_are_the_stripped_text():
    stream, seen = run(" \n Grüße, 世界 🙂 and more \n")
    assert seen[-1] == stream.text == "Grüße, 世界 🙂 and more"


def test_text_appears_as_soon_as_it_is_certain():
    _, seen = run("abc def")
    assert seen == ["", "a", "ab", "abc", "abc", "abc d", "abc de", "abc def", "abc def"]


def test_a_character_is_never_split():
    text = "é世🙂x"
    _, seen = run(text)
    assert all(text.startswith(one) for one in seen)
    assert set(seen) == {"", "é", "é世", "é世🙂", "é世🙂x"}


def test_an_unfinished_last_character_is_shown_as_decode_shows_it():
    stream, seen = run("ab🙂".encode()[:-1])
    assert seen[-2] == "ab"
    assert stream.text == "ab\ufffd"


def test_broken_bytes_in_the_middle_are_shown():
    stream, _ = run(b"a\xffb")
    assert stream.text == "a\ufffdb"


@pytest.mark.parametrize("stop", [("###",), ("</s>", "###"), ("#",), ("\n###",)])
def test_stop_string_ends_the_text_and_never_shows(stop):
    stream, seen = run("four \n### Human: and", stop)
    assert stream.stopped
    assert stream.text == "four"
    assert not any("#" in one for one in seen)


def test_beginning_of_a_stop_string_is_held_back_then_shown():
    stream, seen = run("a ## b", ("###",))
    assert not stream.stopped
    assert seen[-1] == "a ## b"
    assert "a #" not in seen
    assert seen[4] == "a"  # after "a ##"
    assert seen[5] == "a ##"  # after "a ## "


def test_held_back_text_comes_at_the_end():
    stream, seen = run("wait #", ("###",))
    assert seen[-2] == "wait" and seen[-1] == stream.text == "wait #"


def test_earliest_of_several_stop_strings_counts():
    stream, _ = run("one B two A", ("A", "B"))
    assert stream.text == "one"


def test_nothing_comes_after_a_stop_string():
    stream = TextStream(ByteTokenizer(), ("!",))
    pieces = [stream.put(byte) for byte in b"a!b"]
    assert pieces == ["a", "", ""] and stream.end() == ""


def test_tokenizers_that_clean_up_blanks_stream_what_decode_gives():
    text = "I do n't know , it is Tom 's ' world . Really 've not"
    tokenizer = CleaningTokenizer()
    _, seen = run(text, tokenizer=tokenizer)
    final = tokenizer.decode(text.encode())
    assert seen[-1] == final == "I don't know, it is Tom's'world. Really've not"
    assert all(final.startswith(one) for one in seen)
    assert len(set(seen)) > 30  # it streams all the same


def test_random_texts_that_are_cleaned_up():
    rng = random.Random(1)
    tokenizer = CleaningTokenizer()
    for _ in range(300):
        text = "".join(
            rng.choices(["a", " ", " ", "'", "n't", "s", ".", ",", "ve", "#"], k=rng.randrange(1, 25))
        )
        _, seen = run(text, ("##",), tokenizer)
        expected = tokenizer.decode(text.encode())
        cut = expected.find("##")
        expected = (expected if cut < 0 else expected[:cut]).strip()
        assert seen[-1] == expected, text
        assert all(expected.startswith(one) for one in seen)


def test_random_texts_and_stop_strings():
    rng = random.Random(0)
    alphabet = ["a", " ", "#", "##", "é", "世", "🙂", "\n", "</s", "</s>", "."]
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 25)))
        stop = tuple(rng.sample(["###", "</s>", "# #", "é世"], rng.randrange(0, 4)))
        expected = text[: min((text.find(one) for one in stop if one in text), default=len(text))].strip()
        _, seen = run(text, stop)
        assert seen[-1] == expected
        assert all(expected.startswith(one) for one in seen)


def test_random_texts_held_to_their_end():
    rng = random.Random(2)
    alphabet = ["a", " ", "#", "##", "é", "世", "🙂", "\n", "</s", "</s>", " .", " '", "n't"]
    for tokenizer in (ByteTokenizer(), CleaningTokenizer()):
        for _ in range(300):
            text = "".join(rng.choices(alphabet, k=rng.randrange(1, 25)))
            stop = tuple(rng.sample(["###", "</s>", "# ", "é世", "n't"], rng.randrange(0, 4)))
            held = TextStream(tokenizer, stop)
            stopped = any(held.hold(byte) for byte in text.encode())
            held.end()
            streamed, _ = run(text, stop, tokenizer)
            assert (held.text, held.stopped) == (streamed.text, streamed.stopped), (text, stop)
            assert stopped == streamed.stopped


class Counting(CleaningTokenizer):
    """Counts the ids that it is asked to decode."""

    n_decoded = 0

    def decode(self, ids, *args, **kwargs):
        self.n_decoded += len(ids)
        return super().decode(ids, *args, **kwargs)


def test_a_long_answer_is_not_decoded_whole_at_every_step():
    rng = random.Random(3)
    alphabet = ["word ", "世界", "🙂", " ' ", "n't", " .", "\n", "# "]
    text = "".join(rng.choices(alphabet, k=1500))
    tokenizer = Counting()
    _, seen = run(text, ("###",), tokenizer)
    n_ids = len(text.encode())
    assert seen[-1] == CleaningTokenizer().decode(text.encode()).strip()
    assert tokenizer.n_decoded < 700 * n_ids < n_ids * n_ids / 4


@pytest.mark.parametrize("name", ["llava-tiny-v1.5", "llava-tiny-v1.6-mistral", "llava-tiny-mpt"])
def test_long_answers_of_real_tokenizers(checkpoints, name):
    tokenizer = load_tokenizer(checkpoints / name)
    rng = random.Random(4)
    ids = [rng.randrange(len(tokenizer)) for _ in range(700)]  # also byte pieces and special tokens
    stream = TextStream(tokenizer, ("a stop string that never comes",))
    shown = "".join(stream.put(one) for one in ids) + stream.end()
    assert shown == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert stream._n_head > 300
