"""Writes LLaVA configs so that transformers 4.37 reads the same values from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
else:
    PreTrainedConfig = object


class ReadableByReference(PreTrainedConfig):
    """Adds the names of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) to a config's dict.

    transformers 5 writes `rope_parameters` and `dtype` only, from which 4.37 would silently take its
    defaults. It also leaves out `_name_or_path`, where a stage-1 folder names the base it belongs on.
    """

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the config as the dict that becomes `config.json`."""
        content = super().to_diff_dict()
        rope = content.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            content["rope_theta"] = rope["rope_theta"]
            if rope.get("rope_type", "default") != "default":
                content["rope_scaling"] = {**rope, "type": rope["rope_type"]}
        if content.get("dtype") is not None:
            content["torch_dtype"] = content["dtype"]
        if self.name_or_path:
            content["_name_or_path"] = self.name_or_path
        return content
