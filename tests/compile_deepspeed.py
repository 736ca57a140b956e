"""Compiles the parts of DeepSpeed that the slow tests use, before they start: two minutes and more.

    python tests/compile_deepspeed.py

Into $TORCH_EXTENSIONS_DIR, as tests/conftest.py sets it. Without this the first tests that train with
DeepSpeed compile while others wait, and a lock that a killed run left costs two minutes of a test.
"""

from __future__ import annotations

import time

import conftest  # noqa: F401  # sets TORCH_EXTENSIONS_DIR

from llava.train.setup.compiling import clear_dead_locks, extension_folder


def main() -> None:
    """Compile, or find that all is compiled."""
    began = time.monotonic()
    clear_dead_locks(quiet_seconds=5)
    # imported last: DeepSpeed takes seconds
    from deepspeed.ops.op_builder.cpu import CPUAdamBuilder, ShareMemCommBuilder

    for builder in (ShareMemCommBuilder(), CPUAdamBuilder()):
        builder.load(verbose=False)
    print(f"DeepSpeed's parts are in {extension_folder()} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
