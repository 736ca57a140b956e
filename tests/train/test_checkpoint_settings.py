"""Training from a LLaVA checkpoint checks the checkpoint's own settings before it loads the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from recorded_training import flags, run_train

from llava.utils import UserError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_aspect_ratio", "anyres_max_0"),
        ("mm_vision_select_layer", 9),
        ("image_grid_pinpoints", [[56, 60]]),
    ],
)
def test_training_starts_with_the_check(
    field: str, value: Any, checkpoints: Path, training_data: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(checkpoints / "llava-tiny-v1.6", tmp_path / "llava"))
    file = source / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    (source / "model.safetensors").write_bytes(b"never read")
    more = "--version v1 --mm_projector_type mlp2x_gelu --max_steps 1 --data_path {data}/finetune.json"
    argv = flags(checkpoints, training_data, tmp_path / "out", more, base=str(source))
    with pytest.raises(UserError, match=f"{file}: .*{field}"):
        run_train(argv)
