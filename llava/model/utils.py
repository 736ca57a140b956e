"""Upgrades the config of first-release checkpoints, which say that they are plain Llama."""

from __future__ import annotations

import json
import sys

from llava.atomic import write_text
from llava.model.checkpoints.files import CONFIG_FILE, find_file, read_json
from llava.model.checkpoints.writing import explained_write


def auto_upgrade(config: str) -> None:
    """Rewrite `config.json` of the folder `config` if it is a first-release LLaVA (`model_type` "llama").

    Asks at the terminal; an answer that begins with y rewrites the file, any other ends the program with
    status 1, since the checkpoint would load as a text model. Other folders are left alone.
    """
    file = find_file(config, CONFIG_FILE)
    if file is None:
        return
    content = read_json(file)
    if content.get("model_type") != "llama" or "mm_vision_tower" not in content:
        return
    print(f"{file} was written by the first release of LLaVA (model_type 'llama'); it can be upgraded.")
    print("Do you want to upgrade it now? [Y/N]")
    if not sys.stdin.readline().strip().lower().startswith("y"):
        print("Not upgraded; the checkpoint cannot be used as it is.")
        sys.exit(1)
    content["model_type"] = "llava_llama"
    content["architectures"] = ["LlavaLlamaForCausalLM"]
    with explained_write(file):
        write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
    print("Upgraded.")
