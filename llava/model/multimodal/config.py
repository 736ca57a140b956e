"""The multimodal settings of a model config, read and checked in one place, with the reference's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

from llava.mm_utils import check_aspect_ratio, cuts_tiles, parse_grid_pinpoints, tile_cap
from llava.protocols import VisionArguments
from llava.utils import UserError

SELECT_FEATURES = ("patch", "cls_patch")
MERGE_TYPES = "flat, spatial or spatial_unpad; spatial ones may end in _nobase, _maxpool2x2 or both"
_SPATIAL_PARTS = ("unpad", "nobase", "maxpool2x2")
PADDING_SIDES = ("right", "left")

# fields of a config.json -> values that are known; absent fields and null take the reference's defaults
_ENUMERATIONS: dict[str, tuple[str, ...]] = {
    "mm_vision_select_feature": SELECT_FEATURES,
    "mm_resampler_type": ("spatial_pool",),
    "mm_spatial_pool_mode": ("average", "max", "bilinear"),
    "mm_newline_position": ("grid", "frame", "one_token", "no_token"),
    "tokenizer_padding_side": PADDING_SIDES,
}
VIDEO_SETTINGS = ("mm_spatial_pool_mode", "mm_spatial_pool_stride", "mm_newline_position")
_SWITCHES = (
    "mm_use_im_start_end", "mm_use_im_patch_token", "tune_mm_mlp_adapter", "unfreeze_mm_vision_tower", "s2",
)  # fmt: skip


@dataclass(frozen=True)
class MultimodalConfig:
    """What the multimodal code reads from `model.config`; absent fields take the reference's defaults."""

    vision_tower: str | None
    select_layer: int
    select_feature: str  # "patch" drops the CLS token, "cls_patch" keeps it
    resolution: int | None  # `mm_vision_resolution`, pixels that the tower gets, None: its config's
    projector_type: str
    hidden_size: int | None  # `mm_hidden_size`, the width of the tower's features
    merge_type: str  # "flat", "spatial", "spatial_unpad" ..., see check_merge_type
    image_aspect_ratio: str
    image_grid_pinpoints: Any  # list of (width, height), or its text
    use_im_start_end: bool
    use_im_patch_token: bool
    tune_projector: bool
    tower_in_checkpoint: bool  # `unfreeze_mm_vision_tower`: the checkpoint brings its own tower weights
    padding_side: str
    max_length: int | None
    s2: bool  # the tower looks at several scales
    s2_scales: str | None
    # of videos
    pool_mode: str  # "average", "max" or "bilinear"
    pool_stride: int
    pools_first: bool  # frames are pooled before the projector, not behind it
    newline_position: str  # "grid", "frame", "one_token" or "no_token"
    of_next: bool  # written by LLaVA-NeXT's code, or as it writes

    @classmethod
    def of(cls, config: object) -> MultimodalConfig:
        """Read the settings from a config object (model config, argument class or namespace), unchecked."""
        if isinstance(config, MultimodalConfig):
            return config

        def read(name: str, default: object) -> Any:
            value = getattr(config, name, default)
            return default if value is None else value

        return cls(
            vision_tower=read("mm_vision_tower", None) or read("vision_tower", None),
            select_layer=_whole_number("mm_vision_select_layer", read("mm_vision_select_layer", -1)),
            select_feature=read("mm_vision_select_feature", "patch"),
            resolution=read("mm_vision_resolution", None),
            projector_type=read("mm_projector_type", "linear"),
            hidden_size=read("mm_hidden_size", None),
            merge_type=read("mm_patch_merge_type", "flat"),
            image_aspect_ratio=read("image_aspect_ratio", "square"),
            image_grid_pinpoints=read("image_grid_pinpoints", None),
            use_im_start_end=bool(read("mm_use_im_start_end", False)),
            use_im_patch_token=bool(read("mm_use_im_patch_token", True)),
            tune_projector=bool(read("tune_mm_mlp_adapter", False)),
            # LLaVA-NeXT writes which parts were trained, without the older switch
            tower_in_checkpoint=bool(read("unfreeze_mm_vision_tower", False))
            or "mm_vision_tower" in str(read("mm_tunable_parts", "")),
            padding_side=read("tokenizer_padding_side", "right"),
            max_length=read("tokenizer_model_max_length", None),
            s2=bool(read("s2", False)),
            s2_scales=read("s2_scales", None),
            pool_mode=read("mm_spatial_pool_mode", "bilinear"),
            pool_stride=read("mm_spatial_pool_stride", 2),
            pools_first=read("mm_resampler_type", None) == "spatial_pool",
            newline_position=read("mm_newline_position", "one_token"),
            of_next=read("mm_tunable_parts", None) is not None,
        )

    @classmethod
    def checked(cls, config: Mapping[str, Any]) -> MultimodalConfig:
        """Read the settings from the content of a checkpoint's config.json.

        Raises UserError that names the field, the value found and what is known: nothing falls back to a
        default in silence. What depends on the tower is checked by `check_tiles` and
        `llava.model.settings.check_settings`.
        """
        for name, known in _ENUMERATIONS.items():
            if config.get(name) is not None:
                _one_of(name, config[name], known)
        if config.get("mm_patch_merge_type") is not None:
            check_merge_type(config["mm_patch_merge_type"])
        if config.get("image_aspect_ratio") is not None:
            check_aspect_ratio(config["image_aspect_ratio"])
        for name in _SWITCHES:
            if not isinstance(config.get(name, False), bool | None) and config[name] not in (0, 1):
                raise UserError(f"{name} is {config[name]!r}; expected true or false.")
        for name in ("mm_vision_tower", "mm_projector_type", "s2_scales"):
            if not isinstance(config.get(name), str | None):
                what = "the folder or hub name of a vision tower" if name == "mm_vision_tower" else "a text"
                raise UserError(f"{name} is {config[name]!r}; expected {what}.")
        check_video_settings(config)
        if config.get("add_faster_video"):
            raise UserError("add_faster_video is set; faster and slower frames side by side are not known.")
        if config.get("mm_vision_resolution") is not None:
            _positive("mm_vision_resolution", config["mm_vision_resolution"], what="pixels")
        _positive("mm_hidden_size", config.get("mm_hidden_size"), what="the width of the tower's features")
        if config.get("tokenizer_model_max_length") is not None:
            _positive("tokenizer_model_max_length", config["tokenizer_model_max_length"], what="tokens")
        settings = cls.of(SimpleNamespace(**config))
        check_cap(settings.image_aspect_ratio, settings.merge_type)
        return settings

    @property
    def tiles(self) -> bool:
        """Whether images are cut into tiles."""
        return cuts_tiles(self.image_aspect_ratio)

    @property
    def tile_cap(self) -> int | None:
        """How many tiles' patches an image keeps at most, None: all."""
        return tile_cap(self.image_aspect_ratio)

    @property
    def pads_several(self) -> bool:
        """Whether an image that is not alone in its prompt is one padded square, without tiles.

        So LLaVA-NeXT's code does, whose configs have mm_tunable_parts or a cap.
        """
        return self.tiles and (self.of_next or self.tile_cap is not None)

    @property
    def has_newline(self) -> bool:
        """Whether the model has `image_newline`, a feature that ends the lines of an image."""
        return "unpad" in self.merge_type

    @property
    def max_pools(self) -> bool:
        """Whether of 2 x 2 patches the largest is kept, in every channel."""
        return "maxpool2x2" in self.merge_type

    @property
    def omits_overview(self) -> bool:
        """Whether the features of an image that is cut into tiles are without its overview."""
        return "nobase" in self.merge_type

    def without_stored_tower(self) -> MultimodalConfig:
        """Return the settings for a tower that is built from its own files."""
        return replace(self, tower_in_checkpoint=False)

    def check_tiles(self, tile_size: int) -> None:
        """Raise UserError where images are cut by grids that are missing or not made of the tower's tiles."""
        if self.tiles:
            check_grids(self.image_grid_pinpoints, tile_size)


def check_merge_type(kind: object) -> str:
    """Return a `mm_patch_merge_type`. Raises UserError for one that is not known.

    LLaVA-NeXT looks for words in it: "spatial", then "unpad", "nobase" and "maxpool2x2" in any order.
    """
    first, *parts = kind.split("_") if isinstance(kind, str) else ("",)
    spatial = first == "spatial" and len(set(parts)) == len(parts) and set(parts) <= set(_SPATIAL_PARTS)
    if kind != "flat" and not spatial:
        raise UserError(f"mm_patch_merge_type is {kind!r}; expected {MERGE_TYPES}.")
    return str(kind)


def check_video_settings(fields: Mapping[str, Any]) -> None:
    """Raise UserError for settings of videos that are not known; None and missing ones are not set."""
    for name in VIDEO_SETTINGS:
        value = fields.get(name)
        if value is None:
            continue
        if name in _ENUMERATIONS:
            _one_of(name, value, _ENUMERATIONS[name])
        else:
            _positive(name, value, what="patches")


def check_cap(aspect_ratio: str, merge_type: str) -> None:
    """Raise UserError for anyres_max_N with a merge that has no place for its cap."""
    if tile_cap(aspect_ratio) and ("unpad" not in merge_type or "maxpool2x2" in merge_type):
        raise UserError(
            f"image_aspect_ratio is {aspect_ratio!r}, whose cap works on unpadded images, and "
            f"mm_patch_merge_type is {merge_type!r}; expected spatial_unpad, or 'anyres' without a cap."
        )


def check_grids(grids: str | Sequence[Sequence[int]] | None, tile_size: int) -> None:
    """Raise UserError for tile grids that do not parse, are none, or have edges that are no whole tiles."""
    if grids is None:
        raise UserError(
            "image_aspect_ratio is 'anyres', which needs image_grid_pinpoints, and there are none; expected "
            f"e.g. [[{tile_size}, {2 * tile_size}], [{2 * tile_size}, {tile_size}]]."
        )
    for grid in parse_grid_pinpoints(grids, tile_size):
        if any(edge <= 0 or edge % tile_size for edge in grid):
            raise UserError(
                f"image_grid_pinpoints has {list(grid)}; expected multiples of {tile_size}, the pixels of "
                "a tile of this vision tower."
            )


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        choices = ", ".join(known) or "none (null)"
        raise UserError(f"{name} is {value!r}; known values: {choices}.")


def _whole_number(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} is {value!r}; expected a whole number.")
    return value


def _positive(name: str, value: object, *, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        found = "missing" if value is None else repr(value)
        raise UserError(f"{name} is {found}; expected a whole number above 0, {what}.")


@dataclass(frozen=True)
class VisionSettings:
    """What the arguments of a training run say of tower and projector; the defaults are the reference's."""

    vision_tower: str | None
    mm_vision_select_layer: int
    mm_vision_select_feature: str
    mm_projector_type: str = "linear"
    mm_patch_merge_type: str = "flat"
    pretrain_mm_mlp_adapter: str | None = None
    unfreeze_mm_vision_tower: bool = False

    @classmethod
    def of(cls, model_args: VisionArguments) -> VisionSettings:
        """Read the arguments of whoever trains; other projects may lack the fields with a default."""
        names = [one.name for one in fields(cls) if one.default is MISSING or hasattr(model_args, one.name)]
        return cls(**{name: getattr(model_args, name) for name in names})
