"""llava.train.setup.attention: what was asked for when it works, else SDPA with the reason in the log."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from llava.train.setup.attention import FLASH, select_attention


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_sdpa_is_the_default() -> None:
    assert select_attention(None, half_precision=False) == "sdpa"
    assert select_attention("eager", half_precision=False) == "eager"


def test_a_model_without_sdpa_keeps_its_own() -> None:
    assert select_attention(None, half_precision=True, supports_sdpa=False) is None
    assert select_attention("sdpa", half_precision=True, supports_sdpa=False) is None


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
    assert select_attention(FLASH, half_precision=True, supports_sdpa=False) is None


@pytest.mark.usefixtures("on_cuda")
def test_broken_flash_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with caplog.at_level("INFO", logger="llava.train.setup.attention"):
        assert select_attention(FLASH, half_precision=True) == "sdpa"
    assert "flash-attn does not work (ModuleNotFoundError" in caplog.text
