"""Every program with all it needs to be started, for tests that go through them all."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("scripts/extract_mm_projector.py", "scripts/merge_lora_weights.py")


@dataclass(frozen=True)
class Program:
    """A program with all it needs to be started. paths: those of its arguments that are paths.

    models: those that are a folder or hub name. texts: other texts. numbers: numbers. {tmp}: an empty folder.
    """

    module: str
    needs: dict[str, str]
    paths: tuple[str, ...]
    models: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    first: tuple[str, ...] = ()  # a word that comes first
    positional: tuple[str, ...] = field(default=())

    def words(self, tmp: Path, **other: str) -> list[str]:
        """Return a command line with some arguments changed or added."""
        given = {name: value.replace("{tmp}", str(tmp)) for name, value in self.needs.items()}
        given.update({name: value for name, value in other.items() if value is not None})
        places = [given.pop(name) for name in self.positional]
        return [*self.first, *places, *(f"--{name}={value}" for name, value in given.items())]


TOOL = "{tmp}/in"
SRC_DST = {"src": "{tmp}/in", "dst": "{tmp}/out"}
UPLOAD = {"annotation-file": "{tmp}/a", "result-file": "{tmp}/r", "result-upload-file": "{tmp}/out"}
PROGRAMS = {
    "cli": Program(
        "llava.serve.cli",
        {"model-path": TOOL},
        ("model-path", "model-base", "image-file"),
        ("model-path",),
        ("conv-mode", "device"),
        ("temperature", "top-p", "max-new-tokens", "seed"),
    ),
    "eval": Program(
        "llava.eval.run_llava",
        {"model-path": TOOL, "image-file": str(ROOT / "docs/images/quickstart_loss.png"), "query": "Why?"},
        ("model-path", "model-base", "image-file"),
        ("model-path",),
        ("query", "conv-mode", "sep"),
        ("temperature", "top_p", "num_beams", "max_new_tokens", "seed"),
    ),
    "evaluation": Program(
        "llava.eval.__main__",
        {"model-path": TOOL, "data-dir": "{tmp}"},
        (
            *("model-path", "model-base", "data-dir", "question-file", "image-folder"),
            *("answers", "output", "submission"),
        ),
        ("model-path",),
        ("conv-mode", "device", "dtype", "base-url", "api-key", "model", "shard"),
        ("temperature", "top_p", "num_beams", "max_new_tokens", "seed", "limit", "batch-size", "concurrency"),
        ("digits",),
    ),
    "review": Program(
        "llava.eval.eval_gpt_review",
        {"question": "{tmp}/q", "output": "{tmp}/out"},
        ("question", "rule", "output", "judge-cache"),
        (),
        ("judge-model", "judge-base-url", "judge-key-env"),
        ("max-tokens",),
    ),
    "review_bench": Program(
        "llava.eval.eval_gpt_review_bench",
        {"question": "{tmp}/q", "context": "{tmp}/c", "output": "{tmp}/out"},
        ("question", "context", "rule", "output", "judge-cache"),
        (),
        ("judge-model", "judge-base-url", "judge-key-env"),
        ("max-tokens",),
    ),
    "review_visual": Program(
        "llava.eval.eval_gpt_review_visual",
        {"question": "{tmp}/q", "context": "{tmp}/c", "output": "{tmp}/out"},
        ("question", "context", "rule", "output", "judge-cache"),
        (),
        ("judge-model", "judge-base-url", "judge-key-env"),
        ("max-tokens",),
    ),
    "qa_baseline": Program(
        "llava.eval.qa_baseline_gpt35",
        {"question": "{tmp}/q", "output": "{tmp}/out"},
        ("question", "output", "judge-cache"),
        (),
        ("judge-model", "judge-base-url", "judge-key-env"),
        ("max-tokens",),
    ),
    "eval_textvqa": Program(
        "llava.eval.eval_textvqa",
        {"annotation-file": "{tmp}/a", "result-file": "{tmp}/r"},
        ("annotation-file", "result-file", "result-dir"),
    ),
    "eval_pope": Program(
        "llava.eval.eval_pope",
        {"annotation-dir": "{tmp}/a", "question-file": "{tmp}/q", "result-file": "{tmp}/r"},
        ("annotation-dir", "question-file", "result-file"),
    ),
    "eval_science_qa": Program(
        "llava.eval.eval_science_qa",
        {"base-dir": "{tmp}/s", "result-file": "{tmp}/r"}
        | {"output-file": "{tmp}/o", "output-result": "{tmp}/p"},
        ("base-dir", "result-file", "output-file", "output-result"),
        (),
        ("split",),
    ),
    "eval_science_qa_gpt4": Program(
        "llava.eval.eval_science_qa_gpt4",
        {"base-dir": "{tmp}/s", "gpt4-result": "{tmp}/g", "our-result": "{tmp}/r"},
        ("base-dir", "gpt4-result", "our-result"),
        (),
        ("split",),
    ),
    "eval_science_qa_gpt4_requery": Program(
        "llava.eval.eval_science_qa_gpt4_requery",
        {
            **{"base-dir": "{tmp}/s", "gpt4-result": "{tmp}/g", "requery-result": "{tmp}/q"},
            **{"our-result": "{tmp}/r", "output-result": "{tmp}/o"},
        },
        ("base-dir", "gpt4-result", "requery-result", "our-result", "output-result"),
        (),
        ("split",),
    ),
    "summarize": Program("llava.eval.summarize_gpt_review", {"dir": "{tmp}/d"}, ("dir",), (), ("version",)),
    "convert_gqa": Program("scripts/convert_gqa_for_eval.py", SRC_DST, ("src", "dst")),
    "convert_mmvet": Program("scripts/convert_mmvet_for_eval.py", SRC_DST, ("src", "dst")),
    "convert_vizwiz": Program("scripts/convert_vizwiz_for_submission.py", UPLOAD, tuple(UPLOAD)),
    "convert_seed": Program("scripts/convert_seed_for_submission.py", UPLOAD, tuple(UPLOAD)),
    "convert_vqav2": Program(
        "scripts/convert_vqav2_for_submission.py",
        {"dir": "{tmp}/d", "ckpt": "a", "split": "b"},
        ("dir",),
        (),
        ("ckpt", "split"),
    ),
    "convert_mmbench": Program(
        "scripts/convert_mmbench_for_submission.py",
        {"annotation-file": "{tmp}/a", "result-dir": "{tmp}/r", "upload-dir": "{tmp}/u", "experiment": "e"},
        ("annotation-file", "result-dir", "upload-dir"),
        (),
        ("experiment",),
    ),
    "convert_sqa": Program(
        "scripts/convert_sqa_to_llava.py",
        {"base-dir": "{tmp}/s", "split": "test"},
        ("base-dir",),
        (),
        ("split", "prompt-format"),
        (),
        ("convert_to_llava",),
    ),
    "model_qa": Program(
        "llava.eval.model_qa",
        {"model-name": TOOL, "question-file": "{tmp}/q", "answers-file": "{tmp}/a"},
        ("model-name", "question-file", "answers-file"),
    ),
    "webpage": Program(
        "llava.eval.generate_webpage_data_from_table",
        {"question": "{tmp}/q", "answers": "{tmp}/a"},
        ("question", "image-folder", "output"),
    ),
    "model_vqa": Program(
        "llava.eval.model_vqa",
        {"model-path": TOOL, "question-file": "{tmp}/q", "answers-file": "{tmp}/a"},
        ("model-path", "model-base", "image-folder", "question-file", "answers-file"),
        (),
        ("conv-mode",),
        ("num-chunks", "chunk-idx"),
    ),
    "model_vqa_loader": Program(
        "llava.eval.model_vqa_loader",
        {"model-path": TOOL, "question-file": "{tmp}/q", "answers-file": "{tmp}/a"},
        ("model-path", "model-base", "image-folder", "question-file", "answers-file"),
        (),
        ("conv-mode",),
        ("num-chunks", "chunk-idx"),
    ),
    **{
        name: Program(
            f"llava.eval.{name}",
            {"model-path": TOOL, "question-file": "{tmp}/q", "answers-file": "{tmp}/a"},
            ("model-path", "model-base", "image-folder", "question-file", "answers-file"),
            (),
            ("conv-mode",),
            ("num-chunks", "chunk-idx"),
        )
        for name in ("model_vqa_mmbench", "model_vqa_science")
    },
    "model_vqa_qbench": Program(
        "llava.eval.model_vqa_qbench",
        {"model-path": TOOL, "questions-file": "{tmp}/q", "image-folder": "{tmp}", "answers-file": "{tmp}/a"},
        ("model-path", "model-base", "image-folder", "questions-file", "answers-file"),
        (),
        ("conv-mode",),
    ),
    "inspect": Program(
        "llava.model.inspect.__main__",
        {"checkpoint": TOOL},
        ("checkpoint", "model-base"),
        ("checkpoint",),
        positional=("checkpoint",),
    ),
    "to-hf": Program(
        "llava.model.convert_hf",
        {"src": TOOL, "dst": "{tmp}/out"},
        ("src", "dst", "model-base"),
        ("src",),
        ("dtype", "conv-mode"),
        ("max-shard-gb",),
        ("to-hf",),
        ("src", "dst"),
    ),
    "from-hf": Program(
        "llava.model.convert_hf",
        {"src": TOOL, "dst": "{tmp}/out"},
        ("src", "dst", "vision-tower"),
        ("src",),
        ("dtype", "conv-mode"),
        ("max-shard-gb",),
        ("from-hf",),
        ("src", "dst"),
    ),
    "mmproj": Program(
        "llava.model.convert_hf",
        {"src": TOOL, "dst": "{tmp}/out"},
        ("src", "dst"),
        (),  # needs the package gguf
        ("dtype",),
        (),
        ("mmproj",),
        ("src", "dst"),
    ),
    "make_delta": Program(
        "llava.model.make_delta",
        {"base-model-path": TOOL, "target-model-path": TOOL, "delta-path": "{tmp}/out"},
        ("base-model-path", "target-model-path", "delta-path"),
        ("base-model-path",),
        ("hub-repo-id",),
    ),
    "apply_delta": Program(
        "llava.model.apply_delta",
        {"base-model-path": TOOL, "target-model-path": "{tmp}/out", "delta-path": TOOL},
        ("base-model-path", "target-model-path", "delta-path"),
        ("base-model-path",),
    ),
    "consolidate": Program(
        "llava.model.consolidate", {"src": TOOL, "dst": "{tmp}/out"}, ("src", "dst"), ("src",)
    ),
    "extract": Program(
        SCRIPTS[0], {"model-path": TOOL, "output": "{tmp}/out"}, ("model-path", "output"), ("model-path",)
    ),
    "merge": Program(
        SCRIPTS[1],
        {"model-path": TOOL, "model-base": TOOL, "save-model-path": "{tmp}/out"},
        ("model-path", "model-base", "save-model-path"),
        ("model-path",),
        ("dtype",),
    ),
    "check_data": Program(
        "llava.train.check_data",
        {"data_path": "{tmp}/d.json"},
        ("data_path", "image_folder", "data_cache_dir", "model_name_or_path", "vision_tower", "fix", "json"),
        ("model_name_or_path",),
        ("version", "image_grid_pinpoints"),
        ("model_max_length", "workers"),
    ),
    "controller": Program(
        "llava.serve.controller", {}, (), (), ("host", "allow-worker", "api-key"), ("port",)
    ),
    "model_worker": Program(
        "llava.serve.model_worker",
        {"model-path": TOOL, "port": "0"},
        ("model-path", "model-base"),
        ("model-path",),
        ("host", "worker-address", "controller-address", "model-name", "device", "api-key"),
        ("port", "limit-model-concurrency", "cache-mb"),
    ),
    "sglang_worker": Program(
        "llava.serve.sglang_worker",
        {"sgl-endpoint": "http://127.0.0.1:1", "port": "0"},
        (),
        (),
        ("host", "worker-address", "controller-address", "model-name", "sgl-endpoint", "api-key"),
        ("port", "limit-model-concurrency"),
    ),
    "openai_api": Program(
        "llava.serve.openai_api",
        {"model-path": TOOL, "port": "0"},
        ("model-path", "model-base"),
        ("model-path",),
        ("conv-mode", "device", "host", "served-model-name", "api-key", "controller-address"),
        ("port", "max-images", "max-body-mb", "max-tokens", "max-running", "max-waiting", "cache-mb"),
    ),
    "serve": Program(
        "llava.serve.__main__",
        {"model-path": TOOL, "port": "0"},
        ("model-path", "model-base", "log-dir"),
        ("model-path",),
        ("conv-mode", "device", "host", "served-model-name", "api-key"),
        ("port", "max-images", "max-running", "concurrency-count"),
    ),
    "gradio_web_server": Program(
        "llava.serve.gradio_web_server",
        {"model-path": TOOL, "port": "0"},
        ("model-path", "model-base", "log-dir"),
        ("model-path",),
        ("conv-mode", "device", "host", "controller-url", "api-key"),
        ("port", "concurrency-count"),
        ("--local",),
    ),
    "register_worker": Program(
        "llava.serve.register_worker",
        {"controller-address": "http://localhost:1", "worker-name": "http://localhost:2"},
        (),
        (),
        ("controller-address", "worker-name", "api-key"),
    ),
    "test_message": Program(
        "llava.serve.test_message",
        {},
        (),
        (),
        ("controller-address", "worker-address", "model-name", "message", "api-key"),
        ("max-new-tokens",),
    ),
    "train": Program(
        "llava.train.train",
        {"model_name_or_path": TOOL, "data_path": "{tmp}/d.json", "output_dir": "{tmp}/out"},
        (
            *("model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter", "cache_dir", "resume"),
            *("data_path", "eval_data_path", "image_folder", "data_cache_dir", "resume_from_checkpoint"),
            *("output_dir", "logging_dir", "deepspeed", "fsdp_config"),
        ),
        ("model_name_or_path", "vision_tower"),
        ("version", "run_name"),
        (
            *("learning_rate", "weight_decay", "num_train_epochs", "max_steps", "save_steps", "lora_r"),
            *("model_max_length", "seed", "data_seed", "dataloader_num_workers", "shuffle_buffer"),
        ),
    ),
}  # fmt: skip


def start(program: Program, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program in this process, as its file does."""
    monkeypatch.setattr(sys, "argv", [program.module, *words])
    root = logging.getLogger()  # servers take it over
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    file = program.module if program.module.endswith(".py") else program.module.replace(".", "/") + ".py"
    runpy.run_path(str(ROOT / file), run_name="__main__")


def complaint_of(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    **other: str,
) -> str:
    """Run a program that has to end with exit code 2; returns its one sentence."""
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    (tmp_path / "d.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    program = PROGRAMS[name]
    with pytest.raises(SystemExit) as ended:
        start(program, program.words(tmp_path, **other), monkeypatch)
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(errors) == 1 and "Traceback" not in told, told
    assert len(errors[0]) < 1200
    return errors[0]
