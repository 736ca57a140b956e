"""Liger kernels: refused where they cannot run, put into the right model where they can."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_training import flags, run_train

from llava.train.args import TrainingArguments, for_trainer
from llava.train.setup.liger import check_liger, use_liger
from llava.utils import UserError

HAS_LIGER = torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
ON_CUDA = torch.device("cuda")


def _llm(family: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(model_type=family))


def _patch_of(name: str, calls: list[tuple[str, dict[str, Any]]]) -> Any:
    """A function with the arguments and defaults that Liger's have."""

    def apply(
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        model: Any = None,
    ) -> None:
        settings = {"rope": rope, "rms_norm": rms_norm, "swiglu": swiglu, "model": model}
        losses = {"cross_entropy": cross_entropy, "fused_linear_cross_entropy": fused_linear_cross_entropy}
        calls.append((name, {**settings, **losses}))

    return apply


def test_a_cpu_is_refused(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = "--version v1 --data_path {data}/finetune.json --use_liger_kernel True"
    with pytest.raises(UserError, match="needs a CUDA device, this run is on cpu"):
        run_train(flags(checkpoints, training_data, tmp_path / "out", command))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"llava\[liger\]"):
        check_liger(ON_CUDA)


@pytest.mark.parametrize("family", ["llava_llama", "llava_mistral", "llama", "qwen2"])
def test_kernels_of_the_family_are_put_into_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the package; its own loss, which would bypass ours, stays out."""
    calls: list[tuple[str, dict[str, Any]]] = []
    fake = ModuleType("liger_kernel.transformers")
    for name in ("llama", "mistral", "qwen2"):
        setattr(fake, f"apply_liger_kernel_to_{name}", _patch_of(name, calls))
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    check_liger(ON_CUDA)
    model = _llm(family)
    use_liger(model)
    (name, settings), = calls  # fmt: skip
    assert name == family.removeprefix("llava_") and settings.pop("model") is model
    assert {key for key, on in settings.items() if on} == {"rope", "rms_norm", "swiglu"}
    assert settings["fused_linear_cross_entropy"] is False


def test_the_trainer_does_not_patch_again(tmp_path: Path) -> None:
    given = TrainingArguments(output_dir=str(tmp_path), report_to=[])
    given.use_liger_kernel = True
    assert for_trainer(given).use_liger_kernel is False
    assert given.use_liger_kernel is True


def test_other_families_are_refused() -> None:
    with pytest.raises(UserError, match="is for .*llama.*mistral.* models, not for 'mpt'"):
        use_liger(_llm("llava_mpt"))


def test_llms_that_the_installed_package_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LLM without an entry is looked up in the package, by its type."""
    fake = ModuleType("liger_kernel.transformers")
    for name in ("llama", "glm4"):
        setattr(fake, f"apply_liger_kernel_to_{name}", _patch_of(name, []))
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    with pytest.raises(
        UserError, match="not for 'qwen2' models: the installed liger-kernel knows glm4, llama"
    ):
        use_liger(_llm("qwen2"))


@pytest.mark.skipif(not HAS_LIGER, reason="needs a CUDA device and the package liger-kernel")
def test_loss_with_kernels_equals_the_loss_without(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    command = "--version v1 --data_path {data}/finetune.json --max_steps 3 --learning_rate 1e-3 --bf16 True"
    losses = []
    for liger in (False, True):
        argv = flags(
            checkpoints, training_data, tmp_path / str(liger), f"{command} --use_liger_kernel {liger}"
        )
        losses.append(run_train(argv).loss)
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
