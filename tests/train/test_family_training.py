"""Training an LLM that the factory made a LLaVA of, full, LoRA and QLoRA: loaded, asked and exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from recorded_training import flags, run_train
from transformers import AutoModelForImageTextToText

from llava.model.builder import load_pretrained_model
from llava.model.checkpoints.files import read_config
from llava.model.conversion.to_hf import to_hf
from llava.model.language_model.probing import small_model

CHAT = (
    "--version v1 --data_path {data}/finetune.json --image_aspect_ratio pad --mm_projector_type mlp2x_gelu "
    "--learning_rate 2e-3 --max_steps 5 --save_strategy no"
)
LORA = "--lora_enable True --lora_r 8"
RUNS = {
    "full": "",
    "lora": LORA,
    "qlora": f"{LORA} --bits 4",
    "tied": "",
    "start_end": "--mm_use_im_start_end True",
}
SPARE = 40  # rows of the embeddings that no token has, as Qwen's


@pytest.fixture(scope="module")
def make_base(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Give a function that makes a small Qwen2 with Vicuna's tokenizer, and embeddings larger than it."""

    def make(tied: bool) -> Path:
        folder = tmp_path_factory.mktemp("qwen2")
        rows = read_config(checkpoints / "vicuna-tiny")["vocab_size"] + SPARE
        model = small_model("qwen2", vocab_size=rows, max_position_embeddings=2048, tie_word_embeddings=tied)
        model.save_pretrained(folder)
        for file in (checkpoints / "vicuna-tiny").glob("tokenizer*"):
            shutil.copy(file, folder)
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_five_steps_on_qwen2(
    kind: str, make_base: Callable[[bool], Path], checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
    bare = make_base(kind == "tied")
    out = tmp_path / f"llava-{kind}"
    words = f"{CHAT} {RUNS[kind]}"
    run = run_train(flags(checkpoints, training_data, out, words, base=str(bare)), order=[*range(4)] * 5)
    assert len(run.loss) == 5 and run.loss[-1] < run.loss[0] - 0.05
    config = read_config(out)
    assert config["model_type"] == "llava_qwen2"
    base = str(bare) if "lora" in kind else None
    tokenizer, model, processor, _ = load_pretrained_model(
        str(out), base, out.name, device="cpu", dtype="float32"
    )
    assert type(model).__name__ == "LlavaQwen2ForCausalLM" and processor is not None
    ids = torch.arange(3, 40)[None]
    trained = run.trainer.model.eval()
    with torch.no_grad():
        want, found = trained(input_ids=ids).logits.float(), model(input_ids=ids).logits
    assert want.shape[-1] == found.shape[-1] == len(tokenizer) == config["vocab_size"]
    if kind != "qlora":  # trained on a base in 4 bit, loaded on the base as it is
        assert torch.allclose(want, found, atol=1e-5)
    mine = (trained.get_base_model() if base else trained).get_model().mm_projector.state_dict()
    for name, value in model.get_model().mm_projector.state_dict().items():
        assert torch.allclose(value, mine[name].float(), atol=1e-5)
    if not base:
        report = to_hf(str(out), tmp_path / "hf")
        exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype="float32")
        with torch.no_grad():
            there = exported(input_ids=ids).logits
        assert report.lines() and torch.allclose(there[..., : len(tokenizer)], found, atol=1e-5)
