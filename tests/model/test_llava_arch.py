"""Images in a model's input: wrong counts, gradients, trainable parts, vision modules for training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch

from llava.model.checkpoints.files import CheckpointError, save_tensors
from llava.utils import UserError

ANYRES = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}


# ---------------------------------------------------------------------------------------- bad combinations


@pytest.mark.parametrize("given", [1, 3, 4])
def test_image_tokens_and_images_must_agree(build, given):
    """Two image tokens in one row."""
    ids = tiny.prompt(3, "image", 2, "image", 1)
    images = tiny.pixels(given, 3, 28, 28)
    with pytest.raises(UserError, match=f"2 image tokens in 1 rows, but {given} images"):
        build()(input_ids=ids, images=images)


@pytest.mark.parametrize("images", [None, [], tiny.pixels(0, 3, 28, 28)], ids=["none", "list", "tensor"])
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_image_tokens_without_any_images(build, family, call, images):
    model = build(family)
    run = model if call == "forward" else model.generate
    with pytest.raises(UserError, match="1 image token .*no images"):
        run(tiny.prompt(3, "image", 2), images=images)


def test_a_text_batch_may_come_with_a_dummy_image_or_none(build):
    model = build()
    ids = torch.cat((tiny.prompt(5), tiny.prompt(5, seed=7)))
    with torch.no_grad():
        text = model(input_ids=ids).logits
        for images in (tiny.pixels(2, 3, 28, 28), tiny.pixels(0, 3, 28, 28), []):
            torch.testing.assert_close(model(input_ids=ids, images=images).logits, text, atol=1e-6, rtol=1e-5)


def test_too_few_image_sizes(build):
    model = build(**ANYRES)
    images = [tiny.pixels(3, 3, 28, 28)] * 2
    with pytest.raises(UserError, match="2 images came with 1 image_sizes"):
        model(input_ids=tiny.prompt(2, "image", "image"), images=images, image_sizes=[(56, 28)])


def test_image_sizes_that_are_not_the_images(build):
    model = build(**ANYRES)
    with pytest.raises(UserError, match="needs 2 tiles.*found 4"):
        model(input_ids=tiny.prompt(2, "image"), images=[tiny.pixels(5, 3, 28, 28)], image_sizes=[(56, 28)])


def test_spatial_merge_without_sizes(build):
    with pytest.raises(UserError, match="needs image_sizes"):
        build(**ANYRES)(input_ids=tiny.prompt(2, "image"), images=[tiny.pixels(3, 3, 28, 28)])


def test_the_references_errors(build):
    model, ids = build(**ANYRES), tiny.prompt(2, "image")
    arguments = {"input_ids": ids, "images": [tiny.pixels(3, 3, 28, 28)], "image_sizes": [(56, 28)]}
    model.config.image_aspect_ratio = "pad"
    with pytest.raises(NotImplementedError, match="'anyres'"):
        model(**arguments)
    model.config.mm_patch_merge_type = "zigzag"
    with pytest.raises(ValueError, match="'zigzag'"):
        model(**arguments)
    model.config.mm_patch_merge_type = "flat"
    model.config.tune_mm_mlp_adapter = model.config.mm_use_im_start_end = True
    with pytest.raises(NotImplementedError, match="tune_mm_mlp_adapter"):
        model(**arguments)


def test_unknown_padding_side(build):
    with pytest.raises(UserError, match="'middle'; expected 'left' or 'right'"):
        build(tokenizer_padding_side="middle")(input_ids=tiny.prompt(2, "image"), images=tiny.pixels())


# ------------------------------------------------------------------------------------------------ gradients


def projector_gradients(model):
    return [parameter.grad for parameter in model.get_model().mm_projector.parameters()]


def test_loss_reaches_projector_newline_and_embeddings(build, family):
    model = build(family, **ANYRES)
    ids = tiny.prompt(3, "image", 4)
    model.train()
    model(
        input_ids=ids, labels=ids, images=[tiny.pixels(3, 3, 28, 28)], image_sizes=[(56, 28)]
    ).loss.backward()
    assert all(grad.abs().max() > 0 for grad in projector_gradients(model))
    assert model.get_model().image_newline.grad.abs().max() > 0
    used = model.get_input_embeddings().weight.grad.abs().sum(1) > 0
    assert set(used.nonzero().flatten().tolist()) >= set(ids[:, :3].flatten().tolist())
    assert all(parameter.grad is None for parameter in model.get_vision_tower().parameters())


@pytest.mark.parametrize("dummies", [1, 0], ids=["with dummy images", "one image for the batch"])
def test_text_only_rows_keep_the_projector_in_the_graph(build, family, dummies):
    """Under ZeRO and FSDP every rank must compute the same gradients, also one whose rows have no image."""
    model = build(family)
    rows = [tiny.prompt(5), tiny.prompt(1, "image", 3)] if not dummies else [tiny.prompt(5), tiny.prompt(5)]
    images = tiny.pixels(2 if dummies else 1, 3, 28, 28)
    ids = torch.cat(rows)
    model(input_ids=ids, labels=ids.masked_fill(ids == tiny.IMAGE, -100), images=images).loss.backward()
    assert all(grad is not None for grad in projector_gradients(model))
    if dummies:
        assert all(grad.abs().max() == 0 for grad in projector_gradients(model))


def test_gradient_checkpointing_changes_nothing(build, family):
    model = build(family)
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels()
    model.train()
    model(input_ids=ids, labels=ids, images=images).loss.backward()
    plain = [grad.clone() for grad in projector_gradients(model)]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids=ids, labels=ids, images=images, use_cache=False).loss.backward()
    for one, other in zip(projector_gradients(model), plain, strict=True):
        torch.testing.assert_close(one, other)


def test_loss_is_the_mean_over_supervised_tokens_only(build, family):
    """Image features are never targets."""
    model = build(family)
    ids, images = tiny.prompt(3, "image", 4), tiny.pixels()
    labels = ids.clone()
    labels[:, :4] = -100
    with torch.no_grad():
        out = model(input_ids=ids, labels=labels, images=images)
    logits = out.logits[0, -5:-1]
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(logits, ids[0, -4:]))


# -------------------------------------------------------------------------- vision modules for training


def arguments(tower, **fields):
    defaults = {
        "vision_tower": str(tower),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "pretrain_mm_mlp_adapter": None,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
    }
    return SimpleNamespace(**{**defaults, **fields})


@pytest.fixture
def text_llava(family, tower):
    """A LLaVA class without tower and projector, as training loads it on a text model."""
    config = tiny.llava_config(family, tower)
    for name in ("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "use_mm_proj"):
        delattr(config, name)
    torch.manual_seed(0)
    return tiny.llava_class(family)(config)


def test_new_modules_are_written_to_the_config(text_llava, tower):
    model = text_llava
    assert model.get_vision_tower() is None
    model.get_model().initialize_vision_modules(arguments(tower, mm_vision_select_layer=-1))
    config = model.config
    assert (config.mm_vision_tower, config.use_mm_proj) == (str(tower), True)
    assert (config.mm_projector_type, config.mm_hidden_size) == ("mlp2x_gelu", 16)
    assert (config.mm_vision_select_layer, config.mm_vision_select_feature) == (-1, "patch")
    assert config.mm_patch_merge_type == "flat"
    tower_module = model.get_vision_tower()
    assert tower_module.is_loaded
    assert not any(parameter.requires_grad for parameter in tower_module.parameters())
    assert all(parameter.requires_grad for parameter in model.get_model().mm_projector.parameters())
    out = model(input_ids=tiny.prompt(2, "image", 2), images=tiny.pixels())
    assert torch.isfinite(out.logits).all()


def test_a_new_projector_starts_from_torchs_initial_values(text_llava, tower):
    """Not from the LLM's (std 0.02, bias 0): the reference's learning rates are for these."""
    text_llava.get_model().initialize_vision_modules(arguments(tower, mm_projector_type="linear"))
    projector = text_llava.get_model().mm_projector
    bound = 16**-0.5
    assert 0.8 * bound < projector.weight.abs().max() <= bound
    assert 0 < projector.bias.abs().max() <= bound


def test_image_newline_has_the_scale_of_an_embedding(text_llava, tower):
    text_llava.get_model().initialize_vision_modules(arguments(tower, mm_patch_merge_type="spatial_unpad"))
    newline = text_llava.get_model().image_newline
    assert newline.requires_grad
    assert 0.6 * 32**-0.5 < newline.std() < 1.5 * 32**-0.5


def test_projector_of_stage_one_is_loaded(text_llava, tower, tmp_path):
    other = tiny.llava_model("llama", tower, seed=5).get_model().mm_projector.state_dict()
    file = tmp_path / "mm_projector.bin"
    save_tensors({f"model.mm_projector.{name}": value for name, value in other.items()}, file)
    text_llava.get_model().initialize_vision_modules(arguments(tower, pretrain_mm_mlp_adapter=str(file)))
    for name, value in text_llava.get_model().mm_projector.state_dict().items():
        assert torch.equal(value, other[name])


@pytest.mark.parametrize("change", ["missing", "shape", "type"])
def test_projector_of_stage_one_that_does_not_fit(text_llava, tower, tmp_path, change):
    weights = tiny.llava_model("llama", tower, seed=5).get_model().mm_projector.state_dict()
    if change == "missing":
        del weights["2.bias"]
    if change == "shape":
        weights["0.weight"] = torch.zeros(32, 17)
    kind = "linear" if change == "type" else "mlp2x_gelu"
    file = tmp_path / "mm_projector.bin"
    save_tensors({f"model.mm_projector.{name}": value for name, value in weights.items()}, file)
    with pytest.raises(CheckpointError, match=f"mm_projector.bin does not fit the projector '{kind}'"):
        text_llava.get_model().initialize_vision_modules(
            arguments(tower, pretrain_mm_mlp_adapter=str(file), mm_projector_type=kind)
        )


def test_a_projector_that_lora_froze_trains_again(build, tower):
    model = build()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.get_model().mm_projector.state_dict().items()}
    model.get_model().initialize_vision_modules(arguments(tower))
    projector = model.get_model().mm_projector
    assert all(parameter.requires_grad for parameter in projector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in projector.state_dict().items())


def test_a_tower_that_is_there_follows_the_arguments(build, tower):
    """Finetuning a checkpoint with other settings than it was trained with."""
    model = build()
    fields = {"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}
    model.get_model().initialize_vision_modules(arguments(tower, **fields))
    assert (model.get_vision_tower().select_layer, model.config.mm_vision_select_layer) == (-1, -1)
    out = model(input_ids=tiny.prompt(2, "image"), images=tiny.pixels())
    assert out.logits.shape[1] == 2 + 17


def test_fsdp_callers_get_a_hidden_tower(text_llava, tower):
    text_llava.get_model().initialize_vision_modules(arguments(tower), fsdp=["full_shard"])
    assert isinstance(text_llava.get_model().vision_tower, list)
    assert text_llava.get_vision_tower().is_loaded
    assert not any("vision_tower" in name for name, _ in text_llava.named_parameters())


# -------------------------------------------------------------------------------------- image tokens


@pytest.fixture
def vicuna(checkpoints):
    """A tokenizer of 1000 tokens, and a LLaVA with as many rows."""
    from llava.model.tokenizer import load_tokenizer

    model = tiny.llava_model("llama", checkpoints / "tiny-clip", vocab_size=1000, mm_hidden_size=32)
    return load_tokenizer(checkpoints / "vicuna-tiny"), model


def test_start_and_end_tokens_begin_as_the_mean(vicuna):
    tokenizer, model = vicuna
    before = [
        e.weight.detach().clone() for e in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    model.initialize_vision_tokenizer(arguments("", mm_use_im_start_end=True), tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [1000, 1001]
    after = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:1000], old)
        torch.testing.assert_close(new[1000:], old.mean(0, keepdim=True).expand(2, -1))
    assert model.config.vocab_size == 1002
    model.initialize_vision_tokenizer(arguments("", mm_use_im_start_end=True), tokenizer)  # nothing new
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 1002


def test_patch_token_adds_one_row(vicuna):
    tokenizer, model = vicuna
    model.initialize_vision_tokenizer(arguments("", mm_use_im_patch_token=True), tokenizer)
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == 1000
    assert model.get_input_embeddings().weight.shape[0] == 1001


def test_no_tokens_no_change(vicuna):
    tokenizer, model = vicuna
    model.initialize_vision_tokenizer(arguments(""), tokenizer)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 1000


@pytest.mark.parametrize("start_end", [True, False])
def test_stage_one_trains_input_rows_only_for_start_and_end(vicuna, start_end):
    tokenizer, model = vicuna
    wanted = {"mm_use_im_start_end": start_end, "mm_use_im_patch_token": not start_end}
    model.initialize_vision_tokenizer(arguments("", tune_mm_mlp_adapter=True, **wanted), tokenizer)
    assert model.get_input_embeddings().weight.requires_grad == start_end
    assert not model.get_output_embeddings().weight.requires_grad


@pytest.mark.parametrize("rows", [1002, 2])
def test_start_and_end_rows_of_stage_one(vicuna, tmp_path, rows):
    """Old files hold the two rows, newer ones the whole matrix."""
    tokenizer, model = vicuna
    stored = torch.randn(rows, 32)
    save_tensors({"model.embed_tokens.weight": stored}, tmp_path / "p.bin")
    fields = arguments("", mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(tmp_path / "p.bin"))
    model.initialize_vision_tokenizer(fields, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[1000:], stored[-2:])


def test_start_and_end_rows_of_another_model(vicuna, tmp_path):
    tokenizer, model = vicuna
    save_tensors({"model.embed_tokens.weight": torch.zeros(7, 32)}, tmp_path / "p.bin")
    fields = arguments("", mm_use_im_start_end=True, pretrain_mm_mlp_adapter=str(tmp_path / "p.bin"))
    with pytest.raises(CheckpointError, match=r"p\.bin holds embeddings of shape \(7, 32\)"):
        model.initialize_vision_tokenizer(fields, tokenizer)
