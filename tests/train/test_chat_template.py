"""--version chat_template from training to every program that asks: one template, the same ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import KINDS, chat_tokenizer
from recorded_training import flags, run_train

import llava
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import choose_template
from llava.eval.run.local import LocalModel
from llava.inference.prompt import encode_prompt, new_dialog
from llava.inference.sampling import SamplingParams
from llava.serve.openai.launch import served_model
from llava.train.args import parse_args
from llava.train.check_data import main as check_data
from llava.train.checkpointing.manifest import changes, read_manifest
from llava.train.data.dataset import LazySupervisedDataset

RUN = "--version chat_template --data_path {data}/finetune.json --image_aspect_ratio pad"
HOW = (
    "--packing True --group_by_modality_length True --max_steps 2 --mm_projector_type mlp2x_gelu "
    "--mm_use_im_patch_token False --save_strategy no"
)


@pytest.fixture(scope="module")
def base(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Vicuna with a chat template beside its tokenizer."""
    folder = tmp_path_factory.mktemp("templated") / "vicuna-chat"
    shutil.copytree(checkpoints / "vicuna-tiny", folder)
    (folder / "chat_template.jinja").write_text(KINDS["llama_2"][0])
    return folder


@pytest.fixture(scope="module")
def trained(
    base: Path, checkpoints: Path, training_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A packed run of two steps: its trainer and its folder."""
    output = tmp_path_factory.mktemp("trained") / "llava-chat"
    argv = flags(checkpoints, training_data, output, f"{RUN} {HOW}", base=str(base))
    return run_train(argv).trainer, output


def test_the_prompts_of_training_are_those_of_chat_batch_server_and_evaluation(
    trained: Any, base: Path, training_data: Path
) -> None:
    trainer, folder = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["conv_template"] == "chat_template"
    assert read_manifest(folder)["template"]
    record = next(
        one
        for one in json.loads((training_data / "finetune.json").read_text())
        if isinstance(one.get("image"), str) and one["conversations"][0]["value"].startswith("<image>\n")
    )
    question, answer = (turn["value"] for turn in record["conversations"][:2])
    dataset: LazySupervisedDataset = trainer.train_dataset
    sample = dataset.maker.encode({**record, "conversations": record["conversations"][:2]})
    first = int((sample["labels"] != IGNORE_INDEX).nonzero()[0])
    prompt = sample["input_ids"][:first].tolist()
    assert prompt[0] == 1 and prompt.count(1) == 1 and prompt.count(IMAGE_TOKEN_INDEX) == 1
    tokenizer = trainer.processing_class
    learned = tokenizer.decode(sample["labels"][sample["labels"] != IGNORE_INDEX])
    assert learned.split() == f"{answer} </s>".split()

    model = llava.load(str(folder), device="cpu", dtype="float32")
    image = str(training_data / "images" / record["image"])
    text = question.removeprefix("<image>\n")
    served = served_model(model.loaded, ["x"], None, "x").template
    evaluated = LocalModel(
        model.loaded,
        SamplingParams(temperature=0),
        model_id="x",
        conv_mode="chat_template",
        why="",
        batch_size=1,
    )
    assert evaluated.settings["chat_template"] == read_manifest(folder)["template"]
    for template in (model.template, model.session().conversation, served, evaluated.template):
        dialog = new_dialog(template, text, image, model.model.config, has_tower=True)
        assert model.loaded.read(dialog).ids == prompt
        assert encode_prompt(model.tokenizer, dialog.conversation, 1) == prompt
    alone = model.chat(text, image, temperature=0, max_new_tokens=4)
    assert model.batch([(text, image)], temperature=0, max_new_tokens=4) == [alone]
    session = model.session()
    assert session.ask(text, image, temperature=0, max_new_tokens=4) == alone
    assert isinstance(session.ask("And </s> now?", temperature=0, max_new_tokens=4), str)
    assert encode_prompt(model.tokenizer, session.conversation, 1).count(2) == 2  # ends of two answers


def test_a_dry_run_and_the_data_doctor_take_it(
    base: Path, checkpoints: Path, training_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(checkpoints, training_data, tmp_path / "out", f"{RUN} {HOW} --dry_run True", base=str(base))
    run_train(argv)
    assert "</s>" in capsys.readouterr().out
    data = [
        "--data_path",
        str(training_data / "finetune.json"),
        "--image_folder",
        str(training_data / "images"),
    ]
    model = ["--model_name_or_path", str(base), "--version", "chat_template", "--model_max_length", "512"]
    assert check_data([*data, *model]) in (0, None)


def test_a_tokenizer_without_a_template_stops_in_one_sentence(
    checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(llava.utils.UserError, match="vicuna-tiny' has no chat template; put a chat_template"):
        run_train(flags(checkpoints, training_data, tmp_path / "out", f"{RUN} {HOW}"), steps=0)


@pytest.mark.parametrize(
    ("model_type", "template", "given", "version"),
    [
        ("qwen2", True, "", "chat_template"),
        ("qwen2", False, "", "v0"),
        ("gemma", True, "", "gemma_instruct"),
        ("llama", True, "", "v0"),
        ("mistral", True, "", "v0"),
        ("qwen2", True, "--version v1", "v1"),
    ],
)
def test_a_family_without_a_template_of_llavas_gets_its_own(
    model_type: str, template: bool, given: str, version: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if template:
        chat_tokenizer("chatml").save_pretrained(tmp_path)
    paths = [
        "--model_name_or_path",
        str(tmp_path),
        "--data_path",
        "x.json",
        "--output_dir",
        str(tmp_path / "o"),
    ]
    assert parse_args([*paths, *given.split()])[0].version == version


@pytest.mark.parametrize(
    ("name", "config", "key"),
    [
        ("llama3-llava-next-8b", {"model_type": "llava_llama"}, "llava_llama_3"),
        ("llava-v1.6-llama-3-8b", None, "llava_llama_3"),
        ("x", {"model_type": "llava_llama", "vocab_size": 128256}, "llava_llama_3"),
        ("llava-onevision-qwen2-7b-ov", {"model_type": "llava"}, "qwen_1_5"),
        ("x", {"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"]}, "qwen_1_5"),
        ("x", {"model_type": "llava_qwen"}, "qwen_1_5"),
        ("LLaVA-Video-7B-Qwen2", None, "qwen_1_5"),
        ("llava-gemma-2b", {"model_type": "llava_gemma"}, "gemma_instruct"),
        ("llava-phi-3-mini", None, "phi3"),
        ("x", {"model_type": "llava_olmo2"}, "chat_template"),
        ("llava-v1.5-7b", {"model_type": "llava_llama"}, "llava_v1"),
        ("llava-v1.6-34b", {"model_type": "llava_llama"}, "chatml_direct"),
        ("llava-llama-2-13b", {"model_type": "llava_llama"}, "llava_llama_2"),
        ("x", {"model_type": "llava_qwen", "conv_template": "chat_template"}, "chat_template"),
    ],
)
def test_a_checkpoint_gets_the_template_that_its_files_or_its_name_tell(
    name: str, config: dict[str, Any] | None, key: str
) -> None:
    assert choose_template(name, config)[0] == key


def test_a_changed_chat_template_is_told_when_a_run_is_resumed(trained: Any) -> None:
    before = read_manifest(trained[1])
    assert changes(before, before) == []
    told = changes({**before, "template": "another"}, before)
    assert len(told) == 1 and told[0].startswith("the chat template of ")
