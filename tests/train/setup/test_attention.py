"""llava.train.setup.attention: what was asked for when it works, else SDPA with the reason in the log."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from recorded_training import flags, run_train
from transformers import Gemma2PreTrainedModel

from llava.model.language_model.registry import KERNELS, kernels_of
from llava.train.setup.attention import CHOICES, FLASH, select_attention
from llava.utils import UserError

RUN = "--version v1 --data_path {data}/finetune.json --max_steps 1 --save_strategy no"


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_sdpa_is_the_default() -> None:
    assert select_attention(None, half_precision=False) == "sdpa"
    assert select_attention("eager", half_precision=False) == "eager"


def test_a_model_without_sdpa_keeps_its_own() -> None:
    assert select_attention(None, half_precision=True, offered=("eager",)) is None
    assert select_attention("sdpa", half_precision=True, offered=("eager",)) is None


def test_flash_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO", logger="llava.train.setup.attention"):
        assert select_attention(FLASH, half_precision=True) == "sdpa"
    assert [one.getMessage() for one in caplog.records] == [
        "attention: sdpa instead of flash_attention_2, it needs a CUDA device"
    ]


@pytest.mark.usefixtures("on_cuda")
def test_flash_that_works_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert select_attention(FLASH, half_precision=True) == FLASH
    assert select_attention(FLASH, half_precision=False) == "sdpa"
    assert select_attention(FLASH, half_precision=True, offered=("eager",)) is None


@pytest.mark.usefixtures("on_cuda")
def test_broken_flash_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with caplog.at_level("INFO", logger="llava.train.setup.attention"):
        assert select_attention(FLASH, half_precision=True) == "sdpa"
    assert "flash-attn does not work (ModuleNotFoundError" in caplog.text


# ---- --attn ----


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_flag_wins_over_what_the_program_asks_for(kernel: str) -> None:
    assert select_attention(FLASH, half_precision=True, flag=kernel) == kernel


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_3", "flex_attention"])
def test_kernels_of_gpus_are_refused_on_a_cpu(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^--attn {kernel} cannot be used: it needs a CUDA device"):
        select_attention(None, half_precision=True, flag=kernel)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("kernel", "module", "package"),
    [
        ("flash_attention_2", "flash_attn", "flash-attn"),
        ("flash_attention_3", "flash_attn_interface", "flash-attn-3"),
    ],
)
def test_the_flag_names_a_package_that_is_missing(
    kernel: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"the package {package} does not work"):
        select_attention(None, half_precision=True, flag=kernel)
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    assert select_attention(None, half_precision=True, flag=kernel) == kernel
    with pytest.raises(UserError, match="add --bf16 True"):
        select_attention(None, half_precision=False, flag=kernel)


@pytest.mark.usefixtures("on_cuda")
def test_flex_attention_needs_no_package() -> None:
    assert select_attention(None, half_precision=False, flag="flex_attention") == "flex_attention"


@pytest.mark.parametrize("flag", ["sdpa", "flash_attention_2", "flex_attention"])
def test_a_kernel_that_the_family_lacks_is_refused(flag: str) -> None:
    with pytest.raises(UserError, match=rf"--attn {flag} is not offered for llava_mpt models .* has eager;"):
        select_attention(
            None, half_precision=True, flag=flag, offered=kernels_of("llava_mpt"), model_type="llava_mpt"
        )


@pytest.mark.parametrize("model_type", ["llama", "llava_mistral", "gemma2", "qwen2", "not-a-type"])
def test_what_a_family_offers(model_type: str) -> None:
    """By its entry, else by what the installed transformers says of its classes: of Gemma 2 it changes."""
    without_sdpa = model_type == "gemma2" and not Gemma2PreTrainedModel._supports_sdpa
    assert kernels_of(model_type) == tuple(one for one in KERNELS if one != "sdpa" or not without_sdpa)


@pytest.mark.parametrize("attention", CHOICES)
def test_the_flag_in_a_run(attention: str, checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{RUN} --attn {attention}")
    if attention in ("auto", "sdpa", "eager"):
        run = run_train(argv)
        assert run.trainer.model.config._attn_implementation == attention.replace("auto", "sdpa")
    else:
        with pytest.raises(UserError, match=f"--attn {attention} cannot be used"):
            run_train(argv)
