"""Layers that are read late come out the same wherever they are read, and are no burden before."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from test_layers_on_demand import (
    LAST,
    LAYERS,
    TOWER,
    assert_whole,
    folder,
    layers_of,
    load,
    tower_weights,
    whole_model,
)
from transformers import CLIPVisionModel, DINOv3ViTConfig, DINOv3ViTModel

from llava.model.checkpoints.files import CheckpointError, load_weights, save_tensors

__all__ = ["folder"]  # the fixture


def images() -> torch.Tensor:
    return tiny.pixels(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)


@pytest.mark.parametrize("layer", [-2, 0])
@pytest.mark.parametrize("before", ["", "the LLM's", "other attention"])
def test_every_hidden_state_and_attention_is_recorded(folder: Path, before: str, layer: int) -> None:
    """transformers records them with hooks of each layer, hung up when a model is first asked for them, the
    tower's by the LLM's first request too."""
    folders.edit_config(folder, mm_vision_select_layer=layer)
    model, whole = load(folder), whole_model(folder)
    for one in (model, whole):
        if before == "the LLM's":
            one(input_ids=tiny.prompt(3, "image", 2), images=images(), output_hidden_states=True)
        one.get_vision_tower().vision_tower.vision_model.set_attn_implementation("eager")
    got, want = (
        one.get_vision_tower().vision_tower(images(), output_hidden_states=True, output_attentions=True)
        for one in (model, whole)
    )
    for kind, count in (("hidden_states", LAYERS + 1), ("attentions", LAYERS)):
        assert len(got[kind]) == len(want[kind]) == count
        assert all(torch.equal(a, b) for a, b in zip(got[kind], want[kind], strict=True))


def test_many_threads_read_them_once(folder: Path) -> None:
    model = load(folder)
    barrier, lengths = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        lengths.append(len(list(layers_of(model))))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [LAYERS] * 8
    assert_whole(model, folder)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


PLACES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "another default dtype": lambda: default_dtype(torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("place", list(PLACES))
def test_the_place_of_the_question_does_not_matter(folder: Path, place: str) -> None:
    model = load(folder)
    with PLACES[place]():
        layers_of(model).read()
    assert_whole(model, folder)
    assert not any(value.is_inference() for value in model.parameters())
    model.load_state_dict(model.state_dict())


def test_a_walk_over_the_model_goes_on(folder: Path) -> None:
    for walk in ("named_modules", "named_parameters"):
        model = load(folder)
        for _, one in getattr(model, walk)():
            if one is model or one is layers_of(model) or one is layers_of(model)[1].mlp.fc1.weight:
                model.state_dict()
        assert layers_of(model).unread == 0


def test_the_random_numbers_stay(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And nothing is printed, as transformers' bar."""
    model = load(folder)
    capfd.readouterr()
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    model.state_dict()
    assert torch.equal(torch.rand(4), want)
    assert "".join(capfd.readouterr()) == ""


def test_a_model_is_freed_when_nobody_uses_it(folder: Path) -> None:
    """At once, not when the garbage collector next looks: the next model may need the memory."""
    model = load(folder)
    gc.collect()
    gc.disable()
    try:
        tower = weakref.ref(model.get_vision_tower())
        del model
        assert tower() is None
    finally:
        gc.enable()


def test_other_weights_in_their_files_are_not_taken(folder: Path) -> None:
    """Another model that was saved over them; the same weights written again are no other ones."""
    source = (
        folder if any(name.startswith(LAST) for name in load_weights(folder)) else folder.parent / "tower"
    )
    file, weights = source / "model.safetensors", load_weights(source)
    weights = {name: value.clone() for name, value in weights.items()}
    before = {name: value.clone() for name, value in tower_weights(folder).items()}
    model = load(folder)
    save_tensors({name: value * 2 for name, value in weights.items()}, file)
    with pytest.raises(CheckpointError, match="have changed since the model was loaded"):
        model.state_dict()
    save_tensors(weights, file)
    states = model.state_dict()
    assert all(torch.equal(states[name], value) for name, value in before.items())


def test_a_printed_model_names_them_and_needs_no_file(folder: Path) -> None:
    model = load(folder)
    folder.rename(folder.with_name("moved"))
    text = repr(model)
    assert f"(0-{LAYERS - 2}): {LAYERS - 1} x CLIPEncoderLayer" in text
    assert f"({LAYERS - 1}): read when asked for" in text


def test_an_adapter_that_was_put_on_a_loaded_model_loads_again(folder: Path, tmp_path: Path) -> None:
    """It has none for layers that were not there."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(load(folder), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_B" in name:
                value.fill_(0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.base_model.model.config.save_pretrained(tmp_path / "adapter")
    states = load(tmp_path / "adapter", folder).state_dict()
    want = wrapped.merge_and_unload().state_dict()
    assert states.keys() == want.keys()
    for name, value in states.items():
        torch.testing.assert_close(value, want[name])


def test_a_trained_copy_beside_an_adapter_stays_whole(folder: Path, tmp_path: Path) -> None:
    """PEFT's modules_to_save copies the tower while its layers are held back."""
    from peft import LoraConfig, get_peft_model

    base = whole_model(folder)
    config = LoraConfig(target_modules=["up_proj"], modules_to_save=["encoder"])
    wrapped = get_peft_model(base, config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "modules_to_save" in name:
                value.mul_(2)
    wrapped.save_pretrained(tmp_path / "adapter")
    base.config.save_pretrained(tmp_path / "adapter")
    states = load(tmp_path / "adapter", folder).state_dict()
    for name, value in tower_weights(folder).items():
        factor = 2 if ".encoder." in name.removeprefix(TOWER[:-1]) else 1
        assert torch.equal(states[name], value * factor), name


@pytest.mark.parametrize("part", ["tower", "vision model"])
def test_compiled_parts_give_the_same(folder: Path, part: str) -> None:
    model, whole = load(folder), whole_model(folder)
    got, want = (
        one.get_vision_tower() if part == "tower" else one.get_vision_tower().vision_tower
        for one in (model, whole)
    )
    compiled = torch.compile(got, backend="eager", fullgraph=True)
    with torch.no_grad():
        a, b = compiled(images()), want(images())
    assert torch.equal(*((a, b) if part == "tower" else (a.last_hidden_state, b.last_hidden_state)))
    assert layers_of(model).unread == (1 if part == "tower" else 0)


def test_only_they_are_read(folder: Path) -> None:
    """Not a second tower in float32, which for the largest is more memory than the model takes."""
    model, made = load(folder), []
    build = CLIPVisionModel.__init__

    def remembered(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIPVisionModel, "__init__", remembered)
        layers_of(model).read()
    (twin,) = made
    there = [value for value in twin.encoder.layers.parameters() if not value.is_meta]
    assert sum(value.numel() for value in there) in (
        0,
        sum(one.numel() for one in layers_of(model)[-1].parameters()),
    )


def test_weights_that_transformers_gives_other_names(tmp_path: Path, checkpoints: Path) -> None:
    """DINOv3's layer_scale1 is layer.scale1 in its list of unexpected weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": LAYERS, "image_size": 28}
    config = DINOv3ViTConfig(num_attention_heads=2, patch_size=7, layerscale_value=0.5, **sizes)
    DINOv3ViTModel(config).save_pretrained(tmp_path / "tower")
    fields = {"mm_vision_tower": str(tmp_path / "tower"), "mm_hidden_size": 16}
    whole = folders.whole("llama", tmp_path / "llava", checkpoints, unfreeze_mm_vision_tower=True, **fields)
    stored = load_weights(whole)
    assert any("layer_scale1" in name for name in stored)
    states = load(whole).state_dict()
    assert states.keys() == stored.keys()
    assert all(torch.equal(states[name], value) for name, value in stored.items())


def test_a_checkpoint_that_stores_fewer_layers_than_its_tower_has(folder: Path) -> None:
    """Those that it stores are read; the others are omitted, as the last of LLaVA-NeXT's SigLIP."""
    if not any(name.startswith(LAST) for name in load_weights(folder)):
        pytest.skip("the tower's own files hold all of it")
    deeper = tiny.tower_folder(folder.parent / "deeper", num_hidden_layers=LAYERS + 2)
    folders.edit_config(folder, mm_vision_tower=str(deeper), mm_vision_select_layer=1)
    model = load(folder)
    assert len(layers_of(model)) == LAYERS
    assert_whole(model, folder)
