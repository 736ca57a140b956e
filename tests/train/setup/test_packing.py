"""Packed batches: the loss, gradients and course of the padded ones; which models are refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train
from transformers import AutoConfig, AutoModelForCausalLM

from llava.model.builder import load_pretrained_model
from llava.train.setup.packing import keeps_samples_apart, pack_texts, use_packing
from llava.utils import UserError

V15 = "--mm_projector_type mlp2x_gelu --mm_use_im_start_end False --mm_use_im_patch_token False"
CHAT = (
    f"--version v1 --data_path {{data}}/finetune.json --image_aspect_ratio pad {V15} --save_strategy no "
    "--pretrain_mm_mlp_adapter {ck}/llava-tiny-pretrain/mm_projector.bin --learning_rate 1e-3"
)
# text models: with an entry in the registry, and tried out
PACKABLE = ("llama", "mistral", "phi3", "qwen2", "qwen3")
HAS_FLASH = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


@pytest.fixture(scope="module")
def load(checkpoints: Path) -> Callable[..., Any]:
    """Load a tiny checkpoint in float32 by name."""

    def get(name: str, **kwargs: Any) -> Any:
        return load_pretrained_model(
            str(checkpoints / name), None, name, device="cpu", dtype=torch.float32, **kwargs
        )[1]

    return get


def _batch(tiles: bool = False) -> dict[str, Any]:
    """Rows of 20, 9 and 14 tokens: an image, none, two images; the first and last token are labelled."""
    order = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 900, (3, 20), generator=order)
    labels = ids.clone()
    labels[:, 3:7] = -100
    mask = torch.ones(3, 20, dtype=torch.bool)
    for row, length in enumerate((20, 9, 14)):
        mask[row, length:] = False
        labels[row, length:] = -100
    for row, place in ((0, 4), (2, 3), (2, 6)):
        ids[row, place], labels[row, place] = -200, -100
    shape = (3, 3, 56, 56) if tiles else (3, 56, 56)
    images = [torch.randn(shape, generator=order) for _ in range(4)]  # the second for the row without
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "images": images if tiles else torch.stack(images),
        "image_sizes": [(56, 112)] * 4,
    }


def _gradients(model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model.train()(**batch)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava-tiny-v1.5", "llava-tiny-v1.6-mistral"])
def test_packed_loss_and_gradients_equal_the_padded(
    name: str, attention: str, load: Callable[..., Any]
) -> None:
    model = load(name, attn_implementation=attention)
    batch = _batch(tiles="v1.6" in name)
    padded, expected = _gradients(model, batch)
    use_packing(model)
    lengths: list[torch.Size] = []
    hook = model.get_model().layers[0].register_forward_pre_hook(lambda m, a: lengths.append(a[0].shape))
    packed, found = _gradients(model, batch)
    hook.remove()
    real = padded.loss_counts.tolist()
    assert real == packed.loss_counts.tolist() and min(real) > 0
    assert packed.tokens_read.tolist() == padded.tokens_read.tolist()
    assert packed.tokens_read.sum() == lengths[0][1]
    assert torch.allclose(packed.loss_sums, padded.loss_sums, rtol=1e-5)
    assert torch.allclose(packed.loss, padded.loss, rtol=1e-5)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[one], expected[one], rtol=1e-3, atol=1e-6) for one in found)
    assert len(lengths) == 1 and lengths[0][0] == 1


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_sample_in_a_packed_batch_has_the_loss_it_has_alone(row: int, load: Callable[..., Any]) -> None:
    model = load("llava-tiny-v1.5").train()
    batch = _batch()
    sample_images = {0: [0], 1: [1], 2: [2, 3]}[row]
    alone = {key: batch[key][row : row + 1] for key in ("input_ids", "labels", "attention_mask")}
    single = model(**alone, images=batch["images"][sample_images])
    use_packing(model)
    packed = model(**batch)
    assert torch.allclose(packed.loss_sums[row], single.loss_sums[0], rtol=1e-5)
    assert packed.loss_counts[row] == single.loss_counts[0]


def test_samples_are_cut_before_they_are_packed(load: Callable[..., Any]) -> None:
    model = load("llava-tiny-v1.5").train()
    model.config.tokenizer_model_max_length = 12
    padded = model(**_batch())
    use_packing(model)
    packed = model(**_batch())
    assert packed.loss_counts.tolist() == padded.loss_counts.tolist()
    assert torch.allclose(packed.loss, padded.loss, rtol=1e-5)


def test_generation_and_logits_are_not_packed(load: Callable[..., Any]) -> None:
    model, batch = load("llava-tiny-v1.5"), _batch()
    expected = model(**batch).logits
    prompt = {"inputs": batch["input_ids"][:1, :9], "images": batch["images"][:1], "max_new_tokens": 5}
    tokens = model.generate(**prompt, do_sample=False)
    use_packing(model)
    assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(model.generate(**prompt, do_sample=False), tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PACKABLE)
def test_text_models_keep_samples_apart(family: str, attention: str) -> None:
    model = _text_model(family, attention)
    batch = {key: value for key, value in _batch().items() if "image" not in key}
    batch["input_ids"][batch["input_ids"] < 0] = 5
    padded = model(**batch, use_cache=False).loss
    packed = pack_texts(batch)
    assert packed["input_ids"].shape == packed["labels"].shape == packed["position_ids"].shape == (1, 43)
    assert torch.allclose(model(**packed).loss, padded, rtol=1e-5)
    whole = {**packed, "position_ids": torch.arange(43)[None]}
    assert not torch.allclose(model(**whole).loss, padded, rtol=1e-5)
    use_packing(model)
    assert torch.allclose(model(**packed).loss, padded, rtol=1e-5)
    del packed["sample_lengths"]  # read off the positions
    assert torch.allclose(model(**packed).loss, padded, rtol=1e-5)
    assert torch.allclose(model(**batch, use_cache=False).loss, padded, rtol=1e-5)


def _text_model(family: str, attention: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=900,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        attn_implementation=attention,
    )
    return AutoModelForCausalLM.from_config(config).train()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sliding_windows_stay_inside_samples(attention: str) -> None:
    model = _text_model("mistral", attention)
    batch = {key: value for key, value in _batch().items() if "image" not in key}
    batch["input_ids"][batch["input_ids"] < 0] = 5
    model.config.sliding_window = 4
    padded = model(**batch, use_cache=False).loss
    assert torch.allclose(model(**pack_texts(batch)).loss, padded, rtol=1e-5)
    use_packing(model)
    assert torch.allclose(model(**pack_texts(batch)).loss, padded, rtol=1e-5)
    model.config.sliding_window = None
    assert not torch.allclose(model(**batch, use_cache=False).loss, padded, rtol=1e-5)


def test_models_that_would_mix_samples_are_refused(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    argv = flags(
        checkpoints, training_data, tmp_path / "out", f"{CHAT} --packing True", base="llava-tiny-mpt"
    )
    with pytest.raises(UserError, match="would mix samples in 'mpt' models"):
        run_train(argv)


@pytest.mark.parametrize(
    ("model_type", "attention", "apart", "why"),
    [
        ("qwen2", "sdpa", True, ""),
        ("qwen2", "flash_attention_2", True, ""),
        ("gemma2", "eager", True, ""),
        ("phi3", "samplewise", True, ""),
        ("gpt_oss", "eager", False, "logits change by"),
        ("falcon", "sdpa", False, ""),
        ("mamba", "sdpa", False, "could not be tried out here"),
        ("nothing_known", "sdpa", False, "could not be tried out here"),
    ],
)
def test_other_llms_are_tried_out(model_type: str, attention: str, apart: bool, why: str) -> None:
    state = torch.random.get_rng_state()
    found, reason = keeps_samples_apart(model_type, attention)
    assert found is apart and why in reason
    assert torch.equal(torch.random.get_rng_state(), state)  # training draws the same numbers


def test_an_llm_without_an_entry_that_mixes_samples_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="gpt_oss", _attn_implementation="eager"))
    with pytest.raises(UserError, match="would mix samples in 'gpt_oss' models, whose logits change by"):
        use_packing(model)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--gradient_checkpointing True",
        "--lora_enable True --lora_r 4 --lora_dropout 0",
        "--unfreeze_mm_vision_tower True",
        "--tune_mm_mlp_adapter True",
        "--bf16 True",
    ],
)
def test_packed_run_has_the_course_of_a_padded_one(
    more: str, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    runs = []
    for packing in (False, True):
        command = f"{CHAT} --max_steps 3 --packing {packing} --eval_split 0.1 {more}"
        argv = flags(checkpoints, training_data, tmp_path / f"out-{packing}", command)
        runs.append(run_train(argv, order=[0, 1, 2, 3, 2, 5, 8, 11, 4, 6, 7, 9]))
    padded, packed = runs
    near = 2e-2 if "bf16" in more else 1e-4
    assert packed.loss == pytest.approx(padded.loss, rel=near)
    assert packed.grad_norm == pytest.approx(padded.grad_norm, rel=10 * near)
    logs = [run.trainer.state.log_history for run in runs]
    for key in ("loss_text", "loss_image", "eval_loss", "eval_loss_text", "eval_loss_image"):
        values = [[entry[key] for entry in log if key in entry] for log in logs]
        assert values[0] and values[1] == pytest.approx(values[0], rel=near)


def test_text_runs_pack_as_well(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    records = json.loads((training_data / "finetune.json").read_text())
    (tmp_path / "texts.json").write_text(json.dumps([one for one in records if "image" not in one]))
    losses = []
    for packing in (False, True):
        command = f"{CHAT} --data_path {tmp_path}/texts.json --max_steps 3 --packing {packing}"
        command = command.replace("--pretrain_mm_mlp_adapter {ck}/llava-tiny-pretrain/mm_projector.bin", "")
        argv = flags(checkpoints, training_data, tmp_path / f"out-{packing}", command)
        place = argv.index("--vision_tower")
        losses.append(run_train(argv[:place] + argv[place + 2 :]).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.skipif(not HAS_FLASH, reason="needs a CUDA device and the package flash-attn")
def test_flash_attention_keeps_samples_apart() -> None:
    model = _text_model("llama", "sdpa").cuda().bfloat16()
    batch = {key: value.cuda() for key, value in _batch().items() if "image" not in key}
    batch["input_ids"][batch["input_ids"] < 0] = 5
    padded = model(**batch, use_cache=False).loss
    model.set_attn_implementation("flash_attention_2")
    assert torch.allclose(model(**pack_texts(batch)).loss, padded, rtol=2e-2)
    whole = {**pack_texts(batch), "position_ids": torch.arange(43, device="cuda")[None]}
    assert not torch.allclose(model(**whole).loss, model(**pack_texts(batch)).loss, rtol=1e-3)
