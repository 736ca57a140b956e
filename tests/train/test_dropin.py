"""Other projects build on `llava.train`: a subclass of the trainer, and all names by a star import."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler
from warming import python

from llava.model.builder import load_pretrained_model
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import DataArguments, TrainingArguments, make_supervised_data_module

ROOT = Path(__file__).parents[2]


class ForkTrainer(LLaVATrainer):
    """Overrides what forks override: sampler, optimizer, loss, and what is saved."""

    seen: list[str]

    def _get_train_sampler(self, *args: Any) -> Any:
        self.seen = ["sampler"]
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, *args: Any) -> Any:
        self.seen.append("optimizer")
        optimizer = super().create_optimizer(*args)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        return optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        self.seen.append("loss")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + 0.0 * sum(value.sum() for value in model.parameters() if value.requires_grad)
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("checkpoint")
        super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.seen.append("save")
        super()._save(output_dir, state_dict)


def test_a_subclass_of_the_trainer(checkpoints: Path, training_data: Path, tmp_path: Path) -> None:
    """Made by hand as train() of the reference makes it, the tokenizer by its old name."""
    folder = str(checkpoints / "llava-tiny-v1.5")
    tokenizer, model, processor, _ = load_pretrained_model(folder, None, "x", device="cpu", dtype="float32")
    tokenizer.pad_token = tokenizer.unk_token
    model.requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)
    data_args = DataArguments(
        data_path=str(training_data / "finetune.json"),
        image_folder=str(training_data / "images"),
        image_aspect_ratio="pad",
        is_multimodal=True,
    )
    data_args.image_processor = processor
    data_args.mm_use_im_start_end = False
    data_module = make_supervised_data_module(tokenizer=tokenizer, data_args=data_args)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        save_steps=2,
        report_to=[],
        dataloader_num_workers=0,
    )
    before = model.get_model().mm_projector[0].weight.detach().clone()
    trainer = ForkTrainer(model=model, tokenizer=tokenizer, args=args, **data_module)
    assert trainer.tokenizer is tokenizer
    trainer.train()
    assert trainer.seen == ["sampler", "optimizer", "loss", "loss", "checkpoint", "save"]
    assert not torch.equal(model.get_model().mm_projector[0].weight, before)
    assert (tmp_path / "checkpoint-2").is_dir()
    trainer.save_state()
    assert (tmp_path / "trainer_state.json").is_file()


# what programs use after `from llava.train.train import *`
STAR = (
    "rank0_print ModelArguments DataArguments TrainingArguments maybe_zero_3 get_peft_state_maybe_zero_3 "
    "get_peft_state_non_lora_maybe_zero_3 get_mm_adapter_state_maybe_zero_3 find_all_linear_names "
    "safe_save_model_for_hf_trainer smart_tokenizer_and_embedding_resize preprocess_multimodal "
    "preprocess_llama_2 preprocess_v1 preprocess_mpt preprocess_plain preprocess LazySupervisedDataset train "
    "DataCollatorForSupervisedDataset make_supervised_data_module conversation_lib LLaVATrainer "
    "tokenizer_image_token LlavaLlamaForCausalLM LlavaMptForCausalLM LlavaMistralForCausalLM LlavaConfig "
    "IGNORE_INDEX IMAGE_TOKEN_INDEX DEFAULT_IMAGE_TOKEN DEFAULT_IM_START_TOKEN DEFAULT_IM_END_TOKEN"
)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("llava.train.train", STAR),
        ("llava.model.builder", "load_pretrained_model LlavaLlamaForCausalLM DEFAULT_IMAGE_PATCH_TOKEN"),
        ("llava.model", "LlavaLlamaForCausalLM LlavaConfig LlavaMptForCausalLM LlavaMistralForCausalLM"),
        ("llava.constants", "IGNORE_INDEX IMAGE_TOKEN_INDEX DEFAULT_IMAGE_TOKEN LOGDIR"),
        ("llava.serve.cli", "load_image main"),
    ],
)
def test_star_imports(module: str, names: str) -> None:
    given: dict[str, Any] = {}
    exec(f"from {module} import *", given)  # noqa: S102
    assert [name for name in names.split() if name not in given] == []


@pytest.mark.slow
def test_a_program_of_a_fork(tmp_path: Path) -> None:
    """A file with a star import and the reference's main block starts."""
    program = tmp_path / "train_fork.py"
    program.write_text(
        "from llava.train.train import *\nprint(train.__name__, LazySupervisedDataset.__name__)\n"
    )
    done = subprocess.run(
        [python(), str(program)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["train", "LazySupervisedDataset"]
