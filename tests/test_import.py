"""What an import and a --help may cost and load: no torch; `import llava` is quick and touches no stream."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llava
from llava.train.help import recorded_parser

ROOT = Path(__file__).resolve().parents[1]

PROGRAMS = [
    ("-m", "llava.serve.cli"),
    ("-m", "llava.serve"),
    ("-m", "llava.serve.openai_api"),
    ("-m", "llava.serve.gradio_web_server"),
    ("-m", "llava.eval.run_llava"),
    ("-m", "llava.eval.eval_gpt_review"),
    ("-m", "llava.eval.eval_gpt_review_bench"),
    ("-m", "llava.eval.eval_gpt_review_visual"),
    ("-m", "llava.eval.qa_baseline_gpt35"),
    ("-m", "llava.eval.eval_textvqa"),
    ("-m", "llava.eval.eval_pope"),
    ("-m", "llava.eval.eval_science_qa"),
    ("-m", "llava.eval.eval_science_qa_gpt4"),
    ("-m", "llava.eval.eval_science_qa_gpt4_requery"),
    ("-m", "llava.eval.summarize_gpt_review"),
    ("-m", "llava.eval.model_vqa"),
    ("-m", "llava.eval.model_vqa_loader"),
    ("-m", "llava.eval.model_vqa_mmbench"),
    ("-m", "llava.eval.model_vqa_science"),
    ("-m", "llava.eval.model_vqa_qbench"),
    ("-m", "llava.eval"),
    ("-m", "llava.eval", "digits"),
    ("-m", "llava.eval", "score", "digits"),
    ("-m", "llava.serve.controller"),
    ("-m", "llava.serve.model_worker"),
    ("-m", "llava.serve.sglang_worker"),
    ("-m", "llava.serve.register_worker"),
    ("-m", "llava.serve.test_message"),
    ("-m", "llava.model.inspect"),
    ("-m", "llava.model.convert_hf"),
    ("-m", "llava.model.convert_hf", "to-hf"),
    ("-m", "llava.model.apply_delta"),
    ("-m", "llava.model.make_delta"),
    ("-m", "llava.model.consolidate"),
    ("-m", "llava.train.check_data"),
    ("-m", "llava.train.train"),
    ("-m", "llava.train.help"),
    ("llava/train/train.py",),
    ("llava/train/train_mem.py",),
    ("llava/train/train_xformers.py",),
    ("scripts/convert_vqav2_for_submission.py",),
    ("scripts/convert_mmbench_for_submission.py",),
    ("scripts/convert_seed_for_submission.py",),
    ("scripts/convert_sqa_to_llava.py",),
    ("scripts/merge_lora_weights.py",),
    ("scripts/extract_mm_projector.py",),
]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_llava_imports_nothing_but_a_little_of_itself():
    code = """
import sys
before = set(sys.modules)
import llava, llava.constants
new = set(sys.modules) - before
print(*sorted({name.partition(".")[0] for name in new} - sys.stdlib_module_names), len(new))
"""
    name, count = run(code).split()
    assert name == "llava" and int(count) < 20


@pytest.mark.parametrize(
    "module", ["llava", "llava.constants", "llava.utils", "llava.conversation", "llava.mm_utils"]
)
def test_these_modules_load_no_torch(module):
    heavy = (
        "torch",
        "transformers",
        "deepspeed",
        "bitsandbytes",
        "gradio",
        "sklearn",
        "matplotlib",
        "requests",
    )
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    assert run(code) == ""


def test_no_import_replaces_the_standard_streams():
    code = """
import sys
before = sys.stdout, sys.stderr
import llava.utils, llava.conversation, llava.mm_utils
print(before == (sys.stdout, sys.stderr))
"""
    assert run(code) == "True"


@pytest.mark.parametrize("name", llava.__all__)
def test_every_public_name_resolves(name):
    assert name in dir(llava)
    value = getattr(llava, name)
    assert value.__name__ == name
    assert vars(llava)[name] is value  # the second use costs nothing


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="'NoSuchThing'; it exports .*LlavaLlamaForCausalLM"):
        _ = llava.NoSuchThing


def imported(*command: str) -> tuple[int, str, set[str]]:
    """Run a program; returns its exit code, its output, and which top-level modules it imported."""
    command = (sys.executable, "-X", "importtime", *command)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    modules = re.findall(r"^import time: +\d+ \| +\d+ \| +(\w+)", done.stderr, re.MULTILINE)
    return done.returncode, done.stdout, set(modules)


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_help_of_a_program_loads_no_torch(program):
    if "train" in program[-1] and recorded_parser() is None:
        pytest.skip("the flags of training are recorded for another release of transformers")
    code, out, modules = imported(*program, "--help")
    assert code == 0 and out.startswith("usage: ")
    assert "argparse" in modules  # the list of modules was read
    assert not {"torch", "transformers", "peft", "numpy"} & modules


@pytest.mark.parametrize("module", ["llava.serve.cli", "llava.eval.run_llava"])
def test_a_wrong_image_path_does_not_wait_for_torch(module):
    command = ["-m", module, "--model-path", "a", "--image-file", "/nowhere/a.png"]
    code, _, modules = imported(*command, *(["--query", "Hi"] if "eval" in module else []))
    assert code == 2 and "argparse" in modules
    assert not {"torch", "transformers"} & modules


@pytest.mark.slow
@pytest.mark.parametrize("command", ["-c", "-m"])
def test_importing_the_models_registers_them_also_in_a_package_that_is_run(tmp_path, command):
    """`python -m other.program` imports other/__init__.py while sys.argv begins with -m."""
    code = (
        "import llava.model, transformers; print(transformers.AutoConfig.for_model('llava_mpt').model_type)"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other/__init__.py").write_text(code)
    (tmp_path / "other/program.py").write_text("")
    words = [sys.executable, command, "other.program" if command == "-m" else code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "llava_mpt\n", done.stderr
