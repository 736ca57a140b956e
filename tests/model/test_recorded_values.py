"""The reference's own numbers on its tiny checkpoints: features, spliced batches, logits, gradients, tokens.

Fingerprints are sums of 32 to 143 products; the tolerances correspond to 2e-4 for embeddings and 2e-3 for
logits of size 10.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recorded import (
    ANYRES,
    LAYOUTS,
    RECORDED,
    SIZES,
    batch,
    changed,
    check_close,
    crops,
    fingerprint,
    golden,
    grid,
    ids,
    images,
    one_image,
    training_batch,
)

LLAMA_LIKE = ("v15", "v16", "v16_mistral", "v0")
LOOSE = {"lora": 5.0}  # merged in float16


def compare(name, prepared, want):
    """Compare what prepare_inputs_labels_for_multimodal returned with the recorded parts."""
    got = dict(
        zip(("ids", "position_ids", "attention_mask", "past", "embeds", "labels"), prepared, strict=True)
    )
    stored = {key.rsplit("/", 1)[1]: value for key, value in want.items() if key.rsplit("/", 1)[0] == name}
    assert stored, f"nothing recorded for {name}"
    assert {part for part, value in got.items() if value is not None} == set(stored), name
    for part, value in stored.items():
        if part == "embeds":
            check_close(fingerprint(got[part]), value, 2e-3, what=f"{name}/{part}")
        else:
            assert got[part].numpy().dtype.kind == value.dtype.kind, f"{name}/{part}"
            assert np.array_equal(got[part].numpy(), value), f"{name}/{part}"


@pytest.mark.parametrize("key", ["v15", "v16", "v16_mistral", "v0", "mpt", "projector", "lora"])
def test_features(key, recorded_model):
    model, want = recorded_model(key), golden(key)
    with torch.no_grad():
        sample_images = images(model, 2, 3)
        check_close(fingerprint(model.get_vision_tower()(sample_images)), want["tower"], 1e-3, what="tower")
        # the projector of the LoRA checkpoint went through float16
        check_close(fingerprint(model.encode_images(sample_images)), want["encode"], 1e-3, what="encode")


def variants(model, layout, k, count):
    """Yield (name, arguments, config changes) of every way a batch was recorded."""
    row_ids, labels, mask = batch(model, layout, k)
    sample_images = images(model, count, k)
    positions = torch.arange(row_ids.shape[1])[None].expand_as(row_ids)
    flat = {"mm_patch_merge_type": "flat"}
    uneven = [torch.cat([one[None]] * (i % 2 + 1)) for i, one in enumerate(sample_images)]
    yield "", (row_ids, None, mask.bool(), None, labels, sample_images), {}
    yield "+nomask", (row_ids, None, None, None, labels, sample_images), {}
    yield "+nolabels", (row_ids, None, mask.bool(), None, None, sample_images), {}
    left = {"tokenizer_padding_side": "left"}
    yield "+left", (row_ids, None, mask.bool(), None, labels, sample_images), left
    yield "+left_positions", (row_ids, positions, mask.long(), None, labels, sample_images), left
    cut = {"tokenizer_model_max_length": 12}
    yield "+cut", (row_ids, positions, mask.bool(), None, labels, sample_images), cut
    yield "+list", (row_ids, None, mask.bool(), None, labels, list(sample_images)), flat
    five = torch.stack([sample_images, sample_images.flip(0)], 1)
    yield "+five_dims", (row_ids, None, mask.bool(), None, labels, five), flat
    yield "+uneven_list", (row_ids, None, mask.bool(), None, labels, uneven), flat


@pytest.mark.parametrize("key", ["v15", "v16", "v16_mistral", "v0", "mpt"])
def test_spliced_batches(key, recorded_model):
    """One, two and adjacent images, mixed rows; no mask, no labels, both paddings, truncation, lists, 5-D."""
    model, want = recorded_model(key), golden(key)
    names = {name.split("/")[1] for name in want if name.startswith("prepare/")}
    compared = 0
    for k, (layout_name, (layout, count)) in enumerate(LAYOUTS.items(), start=1):
        for suffix, arguments, fields in variants(model, layout, k, count):
            if layout_name + suffix in names:
                with changed(model, **fields), torch.no_grad():
                    prepared = model.prepare_inputs_labels_for_multimodal(*arguments)
                compare(f"prepare/{layout_name}{suffix}", prepared, want)
                compared += 1
    assert compared == len(names - {"no_images", "one_token"}) > 0


def test_ids_pass_through_without_images_and_for_a_single_token(recorded_model):
    model, want = recorded_model("v15"), golden("v15")
    row_ids, labels, mask = batch(model, [[9]], 3)
    prepare = model.prepare_inputs_labels_for_multimodal
    compare("prepare/no_images", prepare(row_ids, None, mask.bool(), None, labels, None), want)
    image = images(model, 1, 2)
    one = prepare(row_ids[:, :1], None, mask.bool(), None, labels[:, :1], image)
    compare("prepare/one_token", one, want)


@pytest.mark.parametrize("kind", ["flat", "spatial", "spatial_unpad"])
@pytest.mark.parametrize("key", ANYRES)
def test_anyres_merges(key, kind, recorded_model):
    """Every tile grid, odd image sizes, an overview alone, left padding with truncation, 5-D tensors."""
    model, want = recorded_model(key), golden(key)
    names = {name.rsplit("/", 1)[0] for name in want if name.startswith(f"anyres/{kind}/")}
    if key == "v16":
        assert np.array_equal([grid(model, size) for size in SIZES], want["anyres/grids"])
        assert len(names) == 11
    cases = {}
    for j, size in enumerate(SIZES):
        cases[str(j)] = (batch(model, [[3, "i", 4]], j + 2), crops(model, [size], j), [size], {})
    rows = batch(model, LAYOUTS["mixed"][0], 5)
    some = [SIZES[0], SIZES[1], SIZES[3], SIZES[2]]
    tiles = crops(model, some, 4)
    cases["mixed"] = (rows, tiles, some, {})
    single = [tiles[0][:1], tiles[1], tiles[2][0], tiles[3]]  # an overview alone; one without tile dimension
    cases["mixed_single"] = (rows, single, some, {})
    cut = {"tokenizer_padding_side": "left", "tokenizer_model_max_length": 60}
    cases["left_cut"] = (rows, single, some, cut)
    same = [SIZES[0], SIZES[0]]
    stacked = torch.stack(crops(model, same, 2))
    cases["five_dims"] = (batch(model, [[4, "i", 5], [2, "i", 3]], 6), stacked, same, {})
    compared = 0
    for name, ((row_ids, labels, mask), sample_images, sizes, fields) in cases.items():
        if f"anyres/{kind}/{name}" in names:
            with (
                changed(model, mm_patch_merge_type=kind, image_aspect_ratio="anyres", **fields),
                torch.no_grad(),
            ):
                prepared = model.prepare_inputs_labels_for_multimodal(
                    row_ids, None, mask.bool(), None, labels, sample_images, sizes
                )
            compare(f"anyres/{kind}/{name}", prepared, want)
            compared += 1
    assert compared == len(names)


@pytest.mark.parametrize("key", [*LLAMA_LIKE, "mpt", "lora", "projector"])
def test_loss_and_logits(key, recorded_model):
    """MPT's are those of transformers 4.37's own MPT on spliced rows: the reference's forward raises."""
    model, want = recorded_model(key), golden(key)
    loose = LOOSE.get(key, 1.0)
    arguments = training_batch(model, key)
    with torch.no_grad():
        out = model(**arguments)
        mask = model.prepare_inputs_labels_for_multimodal(
            arguments["input_ids"], None, arguments["attention_mask"], None, None, arguments["images"],
            arguments.get("image_sizes"),
        )[2]  # fmt: skip
    logits = out.logits[mask]
    check_close(out.loss, want["forward/loss"], 0, 2e-4 * loose, "loss")
    check_close(torch.logsumexp(logits, -1), want["forward/lse"], 2e-3 * loose, what="logsumexp")
    check_close(fingerprint(logits[:, ::7], 3), want["forward/logits"], 2e-2 * loose, what="logits")
    if "forward/text_loss" in want:
        text = batch(model, [[11]], 3)[0]
        with torch.no_grad():
            out = model(input_ids=text, labels=text)
        check_close(out.loss, want["forward/text_loss"], 0, 2e-4 * loose, "text loss")
        got = fingerprint(out.logits[0, :, ::7], 3)
        check_close(got, want["forward/text_logits"], 2e-2 * loose, what="text logits")


@pytest.mark.parametrize("key", ["v15", "v16", "v0"])
def test_gradient_norms(key, recorded_model):
    model, want = recorded_model(key), golden(key)
    norms = {name.removeprefix("grad/norm/"): v for name, v in want.items() if name.startswith("grad/norm/")}
    frozen = {name: value.requires_grad for name, value in model.named_parameters()}
    try:
        for name, value in model.named_parameters():
            value.requires_grad_("vision_tower" not in name)
        loss = model(**training_batch(model, key, 8)).loss
        loss.backward()
        got = {name: value.grad for name, value in model.named_parameters() if "vision_tower" not in name}
        check_close(loss.detach(), want["grad/loss"], 0, 2e-4, "loss")
        assert set(got) == set(norms)
        total = float(np.sqrt(sum(float(v) ** 2 for v in norms.values() if v > 0)))
        for name, norm in norms.items():
            value = -1.0 if got[name] is None else float(got[name].double().norm())
            check_close(value, norm, 1e-5 * total, 5e-3, name)
    finally:
        model.zero_grad()
        for name, value in model.named_parameters():
            value.requires_grad_(frozen[name])


def generate(model, key, what):
    """Run one of the recorded generations."""
    arguments = {"do_sample": False, "max_new_tokens": 20, "use_cache": True}
    one = batch(model, [[5, "i", 6]], 2)[0]
    image = one_image(model, key)
    if what == "text_without_images":
        return model.generate(batch(model, [[12]], 4)[0], **arguments)
    if what == "batch_left":
        two, _, mask = batch(model, [[4, "i", 9], [2, "i", 3]], 4)
        sizes = [SIZES[1], SIZES[3]]
        sample_images = (
            {"images": crops(model, sizes, 3), "image_sizes": sizes}
            if key in ANYRES
            else {"images": images(model, 2, 9)}
        )
        with changed(model, tokenizer_padding_side="left"):
            return model.generate(two, attention_mask=mask.bool(), **sample_images, **arguments)
    if what == "greedy_other_image":
        mirrored = [tiles.flip(-1) for tiles in image["images"]]
        image["images"] = mirrored if key in ANYRES else torch.stack(mirrored)
    return model.generate(one, num_beams=3 if what == "beam3" else 1, **image, **arguments)


@pytest.mark.parametrize(
    "what", ["greedy", "greedy_other_image", "beam3", "text_without_images", "batch_left"]
)
@pytest.mark.parametrize("key", LLAMA_LIKE)
def test_generated_ids(key, what, recorded_model):
    """Compared up to the first step at which two candidates were within 1e-3 of each other."""
    want = RECORDED["generate"][key][what]
    got = generate(recorded_model(key), key, what).tolist()
    assert len(want[0]) >= 8
    assert [row[: len(want[0])] for row in got] == want


@pytest.mark.parametrize("key", LLAMA_LIKE)
def test_decoding_through_the_cache(key, recorded_model):
    model, want = recorded_model(key), golden(key)
    start, image = batch(model, [[5, "i", 6]], 2)[0], one_image(model, key)
    more = torch.tensor([ids(model, 4, 5)])
    with torch.no_grad():
        out = model(input_ids=start, use_cache=True, **image)
        logits = [out.logits[:, -1:]]
        for j in range(4):
            out = model(
                input_ids=more[:, j : j + 1], past_key_values=out.past_key_values, use_cache=True, **image
            )
            logits.append(out.logits)
    check_close(fingerprint(torch.cat(logits, 1)[..., ::7], 3), want["decode"], 2e-2, what="logits")
