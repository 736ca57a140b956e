"""Training on an LLM that the factory has made a LLaVA of, and loading what it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from recorded_training import flags, run_train

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import read_config
from llava.model.language_model.probing import small_model

CHAT = (
    "--version v1 --data_path {data}/finetune.json --image_aspect_ratio pad --mm_projector_type mlp2x_gelu "
    "--learning_rate 2e-3 --max_steps 5 --save_strategy no"
)
SPARE = 40  # rows of the embeddings that no token has, as Qwen's


@pytest.fixture(scope="module")
def bare(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 with Vicuna's tokenizer, and embeddings larger than it."""
    folder = tmp_path_factory.mktemp("qwen2")
    rows = read_config(checkpoints / "vicuna-tiny")["vocab_size"] + SPARE
    small_model("qwen2", vocab_size=rows, max_position_embeddings=2048).save_pretrained(folder)
    for file in (checkpoints / "vicuna-tiny").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
def test_five_steps_on_qwen2(bare: Path, checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "llava-full"
    run = run_train(flags(checkpoints, training_data, out, CHAT, base=str(bare)), order=[*range(4)] * 5)
    assert len(run.loss) == 5 and run.loss[-1] < run.loss[0] - 0.05
    config = read_config(out)
    assert config["model_type"] == "llava_qwen2" and config["architectures"] == ["LlavaQwen2ForCausalLM"]
    _, model, processor, _ = load_pretrained_model(str(out), None, out.name, device="cpu", dtype="float32")
    assert type(model).__name__ == "LlavaQwen2ForCausalLM" and processor is not None
    mine = run.trainer.model.get_model().mm_projector.state_dict()["0.weight"].float()
    assert torch.allclose(model.get_model().mm_projector.state_dict()["0.weight"], mine, atol=1e-5)
