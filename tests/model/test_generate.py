"""generate() and decoding through the cache, with images, for every LLM family."""

import pytest
import tiny
import torch


def greedy_by_hand(model, ids, steps, **images):
    """Take the best token `steps` times, each time from the whole input, without any cache."""
    chosen = []
    for _ in range(steps):
        with torch.no_grad():
            best = model(input_ids=ids, use_cache=False, **images).logits[:, -1].argmax(-1)
        chosen.append(int(best))
        ids = torch.cat((ids, best[:, None]), 1)
    return chosen


def test_greedy_equals_a_loop_written_by_hand(build, family):
    model = build(family, eos_token_id=None)
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels()
    got = model.generate(ids, images=images, max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert got.tolist() == [greedy_by_hand(model, ids, 10, images=images)]
    blind = model.generate(ids, images=-images, max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert blind.tolist() != got.tolist()


def test_only_new_ids_come_back(build, family):
    """Callers decode everything that generate returns."""
    model = build(family)
    ids = tiny.prompt(3, "image", 4)
    got = model.generate(ids, images=tiny.pixels(), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert got.shape == (1, 4)
    as_text = model.generate(tiny.prompt(6), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert as_text.shape == (1, 4)
    named = model.generate(
        input_ids=ids, images=tiny.pixels(), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    assert torch.equal(named, got)


@pytest.mark.parametrize("given", ["left", "right"])
@pytest.mark.parametrize("config", ["left", "right"])
def test_a_padded_batch_equals_rows_alone(build, family, config, given):
    """On whatever side the caller pads and the config asks for; in the reference only "left" was right."""
    model = build(family, tokenizer_padding_side=config)
    images = tiny.pixels(2, 3, 28, 28)
    long, short = tiny.prompt(6, "image", 5, seed=1), tiny.prompt(2, "image", 1, seed=5)
    padding = torch.zeros(1, long.shape[1] - short.shape[1], dtype=torch.long)
    order = slice(None, None, 1 if given == "right" else -1)
    ids = torch.cat((long, torch.cat((short, padding)[order], 1)))
    mask = torch.cat((torch.ones_like(long), torch.cat((torch.ones_like(short), padding)[order], 1)))
    arguments = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    batch = model.generate(ids, images=images, attention_mask=mask, **arguments)
    alone = [
        model.generate(row, images=images[i : i + 1], **arguments)[0].tolist()
        for i, row in enumerate((long, short))
    ]
    assert batch.tolist() == alone
    text = model.generate(ids.clamp(min=3), attention_mask=mask, **arguments)
    assert text[1].tolist() == model.generate(short.clamp(min=3), **arguments)[0].tolist()


@pytest.mark.parametrize("with_positions", [False, True], ids=["", "positions"])
def test_padding_side_does_not_change_logits(build, family, with_positions):
    images = tiny.pixels(2, 3, 28, 28)
    ids = torch.cat(
        (tiny.prompt(4, "image", 5), torch.cat((tiny.prompt(2, "image", 1), torch.zeros(1, 6)), 1))
    )
    ids = ids.long()
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    arguments = {"input_ids": ids, "attention_mask": mask, "images": images}
    if with_positions:
        arguments["position_ids"] = torch.arange(ids.shape[1])[None].expand_as(ids)
    real = mask.sum(1) + tiny.PATCHES - 1  # length of each row
    model = build(family)
    with torch.no_grad():
        right = model(**arguments).logits
        model.config.tokenizer_padding_side = "left"
        left = model(**arguments).logits
    assert left.shape == right.shape == (2, 25, tiny.VOCABULARY)
    for row, length in enumerate(real):
        torch.testing.assert_close(left[row, -length:], right[row, :length], atol=2e-5, rtol=1e-4)


def test_cached_decoding_equals_one_pass(build, family):
    model = build(family)
    ids, more, images = tiny.prompt(3, "image", 4), tiny.prompt(5, seed=9), tiny.pixels()
    with torch.no_grad():
        whole = model(input_ids=torch.cat((ids, more), 1), images=images).logits[:, -6:]
        step = model(input_ids=ids, images=images, use_cache=True)
        parts = [step.logits[:, -1:]]
        for position in range(5):
            step = model(
                input_ids=more[:, position : position + 1],
                images=images,  # callers pass them again; a single token is never an image
                past_key_values=step.past_key_values,
                use_cache=True,
            )
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


def test_beams_sampling_and_stopping_run_with_images(build, family):
    model = build(family)
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels()
    free = model.generate(ids, images=images, max_new_tokens=6, do_sample=False, eos_token_id=None)[
        0
    ].tolist()
    beams = model.generate(ids, images=images, max_new_tokens=5, num_beams=3, do_sample=False)
    assert beams.shape[0] == 1
    torch.manual_seed(0)
    sampled = model.generate(
        ids, images=images, max_new_tokens=5, do_sample=True, temperature=1.5, top_p=None, use_cache=True
    )
    assert 1 <= sampled.shape[1] <= 5
    stopped = model.generate(ids, images=images, max_new_tokens=6, do_sample=False, eos_token_id=free[2])
    assert stopped[0].tolist() == free[: free.index(free[2]) + 1]


def test_the_call_of_evaluation_programs(build):
    model = build("llama")
    ids = tiny.prompt(3, "image", 4)
    got = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
        images=tiny.pixels(),
        image_sizes=[(28, 28)],
        do_sample=False,
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=4,
        use_cache=True,
    )
    assert got.shape[0] == 1
    assert 1 <= got.shape[1] <= 4


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("images", [None, tiny.pixels()], ids=["text", "image"])
def test_given_positions_reach_the_llm(build, family, images):
    """Spliced rows count from 0 again; without images the caller's own positions are used."""
    model, seen = build(family), []
    model.get_model().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    ids = tiny.prompt(3, "image", 4) if images is not None else tiny.prompt(6)
    positions = torch.arange(ids.shape[1])[None] + 5
    model.generate(ids, images=images, position_ids=positions, max_new_tokens=2, do_sample=False)
    expected = list(range(7 + tiny.PATCHES)) if images is not None else positions[0].tolist()
    assert seen[0][0].tolist() == expected


def test_static_cache_gives_the_same_tokens(build):
    model = build("llama")
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels()
    arguments = {"images": images, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    fixed = model.generate(ids, cache_implementation="static", **arguments)
    assert torch.equal(fixed, model.generate(ids, **arguments))


def test_inputs_embeds_are_refused(build):
    with pytest.raises(NotImplementedError, match="inputs_embeds"):
        build("llama").generate(inputs_embeds=torch.zeros(1, 3, 32))


def test_an_unknown_keyword_is_refused(build):
    with pytest.raises(ValueError, match="imges"):
        build("llama").generate(tiny.prompt(3), imges=tiny.pixels(), max_new_tokens=2)
