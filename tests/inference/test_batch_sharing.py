"""Prompts of a batch that begin alike: what they share is computed once, within a budget; answers stay."""

import random
from contextlib import contextmanager

import pytest
from PIL import Image
from test_batch import GREEDY, batched, dialog_of, one_by_one, sample_images

from llava.constants import IMAGE_TOKEN_INDEX
from llava.inference.batch import Reader, answer_all, answer_prompts, same
from llava.inference.dialog import RawPrompt
from llava.inference.engine.kept import Kept
from llava.inference.engine.order import LEAST_SHARED, Order
from llava.inference.sampling import SamplingParams

ONE_TOKEN = SamplingParams(temperature=0, max_new_tokens=1)
SYSTEM, N_REST = list(range(10, 10 + LEAST_SHARED)), 3


def raw(images, number, system=SYSTEM):
    """A prompt: a system text, images, and a question of 3 ids that no other number has."""
    ids = [*system, *([IMAGE_TOKEN_INDEX] * len(images)), 40 + number, 41, 42]
    return RawPrompt(ids, images)


@contextmanager
def prefilled(loaded):
    """Gives a list of how many positions of prompts each call of the model computes."""
    counts = []

    def count(module, args, inputs):
        if "inputs_embeds" in inputs and args == ():
            counts.append(inputs["inputs_embeds"].shape[:2].numel())

    handle = loaded.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def ask(loaded, prompts, params=GREEDY, **settings):
    answers = answer_all(Reader(loaded, params, same), prompts, **settings)
    return [answers[index] for index in range(len(prompts))]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_a_shared_beginning_is_computed_once(family, batch_size):
    loaded, _ = family
    images = [Image.effect_noise((60, 60), 20 + 30 * one).convert("RGB") for one in range(3)]
    prompts = [raw([one.copy()], number) for number in range(4) for one in images]  # told apart by content
    length = loaded.read(prompts[0]).n_positions
    with prefilled(loaded) as counts:
        found = ask(loaded, prompts, ONE_TOKEN, batch_size=batch_size)
    # the system text once, each image once, and the questions
    assert sum(counts) == length + 2 * (length - len(SYSTEM)) + 9 * N_REST
    assert found == [ask(loaded, [one], ONE_TOKEN)[0] for one in prompts]


def test_texts_share_their_system_text(llama):
    prompts = [raw([], number) for number in range(8)]
    with prefilled(llama) as counts:
        ask(llama, prompts, ONE_TOKEN)
    assert counts == [len(SYSTEM) + N_REST, 7 * N_REST]


def test_a_short_beginning_and_other_images_are_not_shared(llama):
    short = [raw([], number, SYSTEM[:-1]) for number in range(8)]
    with prefilled(llama) as counts:
        ask(llama, short, ONE_TOKEN)
    assert counts == [8 * (LEAST_SHARED - 1 + N_REST)]
    one, other = sample_images(2)
    assert Order({0: llama.read(raw([one, other], 1)), 1: llama.read(raw([other, one], 1))}).n_common == 16


def many_questions(template):
    """Several questions an image and a pair of images, of every length, and texts."""
    one, two, *pair = sample_images(4)
    asked = ["What is it?", "Which colour has the largest thing in it?", "Why? " * 9, "Is it red?"]
    dialogs = [dialog_of(template, f"<image>\n{text}", [image]) for text in asked for image in (one, two)]
    dialogs += [dialog_of(template, f"<image> or <image>? {text}", pair) for text in asked[:2]]
    dialogs += [dialog_of(template, text) for text in asked]
    turns = [("<image>\nWhat is it?", "A wall.")]
    return [*dialogs, *(dialog_of(template, text, [one], turns) for text in asked[:2])]


@pytest.mark.parametrize(
    ("name", "window"), [("llama", None), ("mistral", None), ("mistral", 24), ("mpt", None)]
)
def test_answers_are_those_of_one_by_one_in_any_order(load_family, monkeypatch, name, window):
    loaded, template = load_family(name)
    if window is not None:  # caches of a batch are whole, its masks bring the window
        monkeypatch.setattr(loaded.model.config, "sliding_window", window)
    dialogs = many_questions(template)
    expected = one_by_one(loaded, dialogs)
    order = list(range(len(dialogs)))
    for seed, batch_size in ((1, 3), (2, 32)):
        random.Random(seed).shuffle(order)
        found = batched(loaded, [dialogs[one] for one in order], batch_size=batch_size)
        assert found == [expected[one] for one in order]


@pytest.mark.parametrize(("n_kept", "shares"), [(0, False), (1, True)])
def test_what_is_kept_stays_in_its_budget(llama, monkeypatch, n_kept, shares):
    """Room for the beginning of one image, or not quite: then everything is computed again."""
    sizes = []
    add = Kept._add
    monkeypatch.setattr(Kept, "_add", lambda self, *entry: add(self, *entry) or sizes.append(self.n_bytes))
    images = sample_images(3)
    prompts = [raw([one], number) for number in range(3) for one in images]
    expected = ask(llama, prompts)
    layers = llama.model.config.num_hidden_layers
    heads = llama.model.config.num_key_value_heads
    size = 2 * 4 * layers * heads * llama.model.config.hidden_size // llama.model.config.num_attention_heads
    shared = llama.read(prompts[0]).n_positions - N_REST
    budget = size * shared - 1 + n_kept
    monkeypatch.setattr("llava.inference.batch.PREFIX_BYTES", budget)
    monkeypatch.setattr("llava.inference.batch.FEATURE_BYTES", 0)
    sizes.clear()
    with prefilled(llama) as counts:
        assert ask(llama, prompts) == expected
    assert 0 < max(sizes) <= budget
    whole = shared + N_REST + 8 * (shared + N_REST - len(SYSTEM))
    assert (sum(counts) < 0.6 * whole) == shares


def test_a_leader_that_fails_leaves_the_others_their_answers(llama, tmp_path):
    """Its image cannot be opened, so what the others of its image would share is not there either."""
    reader = Reader(llama, GREEDY, same)
    image = Image.effect_noise((60, 60), 50).convert("RGB")
    image.save(tmp_path / "one.png")
    lost = tmp_path / "two.png"
    image.rotate(90).save(lost)
    prompts = {n: llama.read(raw([tmp_path / "one.png" if n % 2 else lost], n)) for n in range(6)}
    lost.unlink()
    failed = []
    found = dict(answer_prompts(reader, prompts, 4, on_failure=lambda index, _: failed.append(index)))
    assert sorted(failed) == [0, 2, 4] and sorted(found) == [1, 3, 5]
    assert list(found[3].ids) == list(ask(llama, [raw([image], 3)])[0].ids)
