"""Training on an LLM that the factory has made a LLaVA of: full, LoRA and QLoRA, loaded and exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from recorded_training import flags, run_train

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import read_config
from llava.model.conversion.to_hf import to_hf
from llava.model.language_model.probing import small_model

CHAT = (
    "--version v1 --data_path {data}/finetune.json --image_aspect_ratio pad --mm_projector_type mlp2x_gelu "
    "--learning_rate 2e-3 --max_steps 5 --save_strategy no"
)
LORA = "--lora_enable True --lora_r 8"
RUNS = {"full": "", "lora": LORA, "qlora": f"{LORA} --bits 4"}
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
@pytest.mark.parametrize("kind", RUNS)
def test_five_steps_on_qwen2(
    kind: str, bare: Path, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
    out = tmp_path / f"llava-{kind}"
    run = run_train(
        flags(checkpoints, training_data, out, f"{CHAT} {RUNS[kind]}", base=str(bare)), order=[*range(4)] * 5
    )
    assert len(run.loss) == 5 and run.loss[-1] < run.loss[0] - 0.05
    config = read_config(out)
    assert config["model_type"] == "llava_qwen2" and config["architectures"] == ["LlavaQwen2ForCausalLM"]
    base = None if kind == "full" else str(bare)
    _, model, processor, _ = load_pretrained_model(str(out), base, out.name, device="cpu", dtype="float32")
    assert type(model).__name__ == "LlavaQwen2ForCausalLM" and processor is not None
    trained = run.trainer.model
    trained = trained if kind == "full" else trained.get_base_model()
    mine = trained.get_model().mm_projector.state_dict()["0.weight"].float()
    assert torch.allclose(model.get_model().mm_projector.state_dict()["0.weight"], mine, atol=1e-5)
    assert len(model.get_input_embeddings().weight) == read_config(bare)["vocab_size"]
    if kind == "full":
        report = to_hf(str(out), tmp_path / "hf")
        assert report is not None
