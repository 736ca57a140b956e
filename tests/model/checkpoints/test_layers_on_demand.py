"""Layers behind the selected one: not loaded to ask a model, and read when something asks for all of them."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.faults import TOWER_BEHIND, Exempt
from llava.model.checkpoints.files import CheckpointError, load_weights, save_tensors
from llava.model.checkpoints.on_demand import LayersOnDemand
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

LAYERS = 4
TOWER = "model.vision_tower.vision_tower.vision_model."
LAST = f"{TOWER}encoder.layers.{LAYERS - 1}."
STORED = {"of its own files": False, "stored in the checkpoint": True}


@pytest.fixture(params=list(STORED))
def folder(request: pytest.FixtureRequest, tmp_path: Path, checkpoints: Path) -> Path:
    """A LLaVA on a tower of four layers, of which -2 is selected."""
    tower = tiny.tower_folder(tmp_path / "tower")
    fields = {"mm_vision_tower": str(tower), "mm_vision_select_layer": -2, "mm_hidden_size": 16}
    stored = STORED[request.param]
    whole = folders.whole("llama", tmp_path / "llava", checkpoints, unfreeze_mm_vision_tower=stored, **fields)
    own = {TOWER + name: value for name, value in load_weights(tower).items()}

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [one for one in weights if one.startswith(TOWER)]:
            del weights[name]
        weights.update({name: value * 1.5 for name, value in own.items()} if stored else {})

    return folders.rewrite(whole, change, "model.safetensors")


def load(path: Path, base: Path | None = None, **arguments: Any) -> Any:
    settings: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, **arguments}
    return load_pretrained_model(str(path), str(base) if base else None, "llava", **settings)[1]


def whole_model(folder: Path) -> Any:
    """The same model with every layer, as an Auto class gives it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.get_vision_tower().load_model()
    return model.eval()


def layers_of(model: Any) -> Any:
    return model.get_vision_tower().vision_tower.vision_model.encoder.layers


def names_of(model: Any) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def tower_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The whole tower's weights, from where they are stored."""
    stored = {name: value for name, value in load_weights(folder).items() if name.startswith(TOWER)}
    own = load_weights(folder.parent / "tower")
    return stored or {TOWER + name: value for name, value in own.items()}


def assert_whole(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Check that a model's state_dict holds the whole tower, as it is stored."""
    states = model.state_dict()
    for name, value in tower_weights(folder).items():
        assert states[name].dtype == dtype
        assert torch.equal(states[name], value.to(dtype)), name


def test_no_weight_of_them_is_loaded(folder: Path) -> None:
    exempt: Exempt = {}
    model = load(folder, exempt=exempt)
    assert type(model) is LlavaLlamaForCausalLM
    tower = model.get_vision_tower()
    assert type(tower.vision_tower.vision_model).__name__ == "CLIPVisionModel"
    assert not any(name.startswith(LAST) for name in names_of(model))
    behind = [name.removeprefix(LAST) for name in tower_weights(folder) if name.startswith(LAST)]
    assert sorted(name.rpartition(f".{LAYERS - 1}.")[2] for name in exempt[TOWER_BEHIND]) == sorted(behind)
    layers = layers_of(model)
    assert (len(layers), layers.unread, tower.num_layers) == (LAYERS, 1, LAYERS)
    assert not any(value.requires_grad for value in tower.parameters())


def test_answers_are_the_whole_models_and_read_nothing(folder: Path) -> None:
    """The whole model is what an Auto class gives, which leaves nothing out."""
    model, whole = load(folder), whole_model(folder)
    assert any(name.startswith(LAST) for name in names_of(whole))
    ids, images = tiny.prompt(3, "image", 2), tiny.pixels(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=ids, images=images).logits, whole(input_ids=ids, images=images).logits
        )
    assert layers_of(model).unread == 1


ASKING: dict[str, Callable[[Any], Any]] = {
    "state_dict": lambda model: model.state_dict(),
    "state_dict of the layers": lambda model: layers_of(model).state_dict(),
    "iterating": lambda model: list(layers_of(model)),
    "the last one": lambda model: layers_of(model)[-1],
    "its index": lambda model: layers_of(model)[LAYERS - 1],
    "its name": lambda model: model.get_submodule(LAST[:-1]),
    "a weight's name": lambda model: model.get_parameter(f"{LAST}mlp.fc1.weight"),
    "a slice": lambda model: layers_of(model)[1:],
    "removing it": lambda model: layers_of(model).pop(-1),
    "another in front": lambda model: layers_of(model).insert(0, torch.nn.Identity()),
    "another behind": lambda model: layers_of(model).append(torch.nn.Identity()),
    "others behind": lambda model: layers_of(model).extend([torch.nn.Identity()]),
    "another by name": lambda model: setattr(layers_of(model), str(LAYERS - 1), torch.nn.Identity()),
    "a module added": lambda model: layers_of(model).add_module(str(LAYERS), torch.nn.Identity()),
    "another in its place": lambda model: layers_of(model).__setitem__(-1, torch.nn.Identity()),
    "the whole vision model": lambda model: model.get_vision_tower().vision_tower.vision_model(
        tiny.pixels(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    ),
    "another selected layer": lambda model: model.get_vision_tower().hidden_state(
        tiny.pixels(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE), -1
    ),
}


@pytest.mark.parametrize("asking", list(ASKING))
def test_what_asks_for_them_reads_them(folder: Path, asking: str) -> None:
    model = load(folder)
    ASKING[asking](model)
    one_more = ("another in front", "another behind", "others behind", "a module added")
    changed = {"removing it": -1, **dict.fromkeys(one_more, 1)}
    layers = layers_of(model)
    assert layers.unread == 0
    assert len(layers) == len(layers._modules) == LAYERS + changed.get(asking, 0)
    if asking not in (*changed, "another in its place", "another by name"):
        assert_whole(model, folder)
        assert not any(value.requires_grad for value in layers.parameters())


@pytest.mark.parametrize(
    "asking", [lambda layers: layers[0], lambda layers: layers[-2], lambda layers: layers[:-1], len, repr]
)
def test_what_does_not_reach_them_reads_nothing(folder: Path, asking: Callable[[Any], Any]) -> None:
    layers = layers_of(load(folder))
    kept = list(layers._modules.values())
    found = asking(layers)
    assert layers.unread == 1
    if isinstance(found, torch.nn.ModuleList):
        assert list(found) == kept
    elif isinstance(found, torch.nn.Module):
        assert found in kept
    with pytest.raises(IndexError):
        layers[LAYERS]


def test_they_come_in_the_dtype_of_the_others(folder: Path) -> None:
    assert_whole(load(folder, dtype=torch.float16), folder, torch.float16)
    assert_whole(load(folder).to(torch.bfloat16), folder, torch.bfloat16)


def test_a_saved_folder_is_whole_also_in_place(folder: Path, tmp_path: Path) -> None:
    before = tower_weights(folder)
    load(folder).save_pretrained(tmp_path / "again")
    load(folder).save_pretrained(folder)  # where the layers behind are still to be read from
    for path in (tmp_path / "again", folder):
        stored = load_weights(path)
        assert all(torch.equal(stored[name], value) for name, value in before.items())


def test_weights_for_them_find_a_place(folder: Path) -> None:
    """A state_dict of the whole model, or of the last layer alone; one without it reads nothing, unless it
    has to be whole."""
    model = load(folder)
    states = {name: value * 2 for name, value in load(folder).state_dict().items()}
    others = {name: value for name, value in states.items() if not name.startswith(LAST)}
    model.load_state_dict(others, strict=False)
    assert layers_of(model).unread == 1
    with pytest.raises(RuntimeError, match="Missing key"):
        load(folder).load_state_dict(others)
    model.load_state_dict(states)
    assert layers_of(model).unread == 0
    assert all(torch.equal(value, states[name]) for name, value in model.state_dict().items())


def test_copies_read_them_too(folder: Path) -> None:
    model = load(folder)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(layers_of(twin), LayersOnDemand)
        assert_whole(twin, folder)
    assert layers_of(model).unread == 1


def test_another_working_directory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders.edit_config(folder, mm_vision_tower="tower")
    model = load(Path(folder.name))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_whole(model, folder)


def test_files_that_are_gone_are_told(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    shutil.move(folder, tmp_path / "moved")
    shutil.move(tmp_path / "tower", tmp_path / "moved tower")
    with pytest.raises(CheckpointError, match=r"llava|tower"):
        model.state_dict()
    assert layers_of(model).unread == 1
    shutil.move(tmp_path / "moved", folder)
    shutil.move(tmp_path / "moved tower", tmp_path / "tower")
    assert_whole(model, folder)


@pytest.mark.parametrize("with_tower", [False, True], ids=["the LLM's", "the tower's too"])
def test_an_adapter_reads_them_only_if_it_has_weights_for_them(
    folder: Path, tmp_path: Path, with_tower: bool
) -> None:
    """PEFT's own adapter on a whole LLaVA; on every q_proj, the tower has layers of that name."""
    from peft import LoraConfig, get_peft_model

    base = whole_model(folder)
    spared = None if with_tower else ".*vision_tower.*"
    wrapped = get_peft_model(base, LoraConfig(target_modules=["q_proj"], exclude_modules=spared))
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_B" in name:
                value.fill_(0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    base.config.save_pretrained(tmp_path / "adapter")
    merged = load(tmp_path / "adapter", folder)
    assert layers_of(merged).unread == (0 if with_tower else 1)
    want = {name: value.clone() for name, value in wrapped.merge_and_unload().state_dict().items()}
    states = merged.state_dict()
    assert states.keys() == want.keys()
    for name, value in states.items():
        torch.testing.assert_close(value, want[name])


def test_trained_beside_an_adapter(folder: Path, tmp_path: Path) -> None:
    """non_lora_trainables.bin of a run that trained the whole tower, its last layer too."""
    from peft import LoraConfig, get_peft_model

    base = whole_model(folder)
    config = LoraConfig(target_modules=["q_proj"], exclude_modules=".*vision_tower.*")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    base.config.save_pretrained(tmp_path / "adapter")
    beside = {name: value * 3 for name, value in tower_weights(folder).items()}
    file = tmp_path / "adapter" / "non_lora_trainables.bin"
    save_tensors({f"base_model.model.{name}": value for name, value in beside.items()}, file)
    states = load(tmp_path / "adapter", folder).state_dict()
    assert all(torch.equal(states[name], value) for name, value in beside.items())


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_the_last_layer_leaves_nothing_out(folder: Path, layer: int) -> None:
    folders.edit_config(folder, mm_vision_select_layer=layer)
    model = load(folder)
    assert type(layers_of(model)) is torch.nn.ModuleList
    assert any(name.startswith(LAST) for name in names_of(model))


def test_an_early_layer_leaves_the_others_out(folder: Path) -> None:
    """The first stays, for the others to come like it."""
    folders.edit_config(folder, mm_vision_select_layer=0)
    model = load(folder, dtype=torch.float16)
    assert (layers_of(model).unread, len(layers_of(model)._modules)) == (LAYERS - 1, 1)
    assert_whole(model, folder, torch.float16)


def test_on_meta_everything_is_there(folder: Path) -> None:
    """As inspection loads it: names and shapes cost nothing."""
    model = load(folder, device="meta")
    assert any(name.startswith(LAST) for name in names_of(model))


def test_training_holds_the_tower_whole(folder: Path) -> None:
    """Its saved folders hold the whole tower, also where weights are split over processes."""
    from llava.model.checkpoints.loading import from_pretrained, load_tower

    model, info = from_pretrained(LlavaLlamaForCausalLM, str(folder))
    load_tower(model, info, str(folder))
    assert any(name.startswith(LAST) for name in names_of(model))
