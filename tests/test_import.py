"""What an import may cost and load: `import llava` is quick, touches no torch and no stream."""

import subprocess
import sys

import pytest

import llava


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_llava_is_quick():
    code = """
import time
start = time.perf_counter()
import llava, llava.constants
print(time.perf_counter() - start)
"""
    assert min(float(run(code)) for _ in range(3)) < 0.2


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
