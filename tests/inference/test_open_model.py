"""open_model: the device is checked before anything is loaded, and the dtype suits it."""

import pytest
import torch

from llava.inference import loading
from llava.model.builder import best_device, best_dtype
from llava.utils import UserError


def test_no_device_means_the_best_one():
    assert loading.check_device(None) == best_device()


def test_cpu_is_always_there():
    assert loading.check_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["toaster", "cuda:x", ""])
def test_unknown_devices_are_refused(device):
    with pytest.raises(UserError, match="expected cpu, cuda, cuda:N or mps"):
        loading.check_device(device)


def test_absent_devices_are_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="'cuda:1' is not usable here; use --device"):
        loading.open_model("nowhere", device="cuda:1")


def test_models_come_in_a_dtype_that_suits_the_device(checkpoints):
    loaded = loading.open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu")
    assert loaded.model.dtype == best_dtype("cpu") != torch.float16
    tokenizer, model, image_processor, context_len = loaded
    assert (tokenizer, model, image_processor, context_len) == (
        loaded.tokenizer,
        loaded.model,
        loaded.image_processor,
        2048,
    )
