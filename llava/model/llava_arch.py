"""The mixins that make an LLM a LLaVA: one holds tower and projector, one puts images into its input."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import nn

from llava._compat import no_split_modules, set_no_split_modules
from llava.constants import IGNORE_INDEX
from llava.mm_utils import get_anyres_image_grid_shape
from llava.model.checkpoints.class_loading import load_class
from llava.model.checkpoints.files import read_tensors
from llava.model.checkpoints.projector import fill_projector
from llava.model.checkpoints.saving import save_whole_model
from llava.model.checkpoints.token_rows import add_image_tokens, average_new_rows
from llava.model.multimodal import splice
from llava.model.multimodal.config import MultimodalConfig, VisionSettings
from llava.model.multimodal.encoding import Encoder
from llava.model.multimodal.features import unpad_image
from llava.model.multimodal.inputs import checked_beside, checked_ids, checked_images
from llava.model.multimodal.loss import SupervisedOutput, losses_of_samples, read_by, supervised_positions
from llava.model.multimodal.splice import SplicedRow
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.registry import tower_class_names
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.registry import check_widths, projected_tile
from llava.protocols import ImageTokenArguments, Tokenizer, VisionArguments
from llava.video import Video

if TYPE_CHECKING:  # what the mixins are mixed into
    from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel

    class _LLM(PreTrainedModel, GenerationMixin): ...
else:
    _LLM = object

__all__ = [
    "LlavaMetaForCausalLM",
    "LlavaMetaModel",
    "average_new_rows",
    "build_vision_projector",
    "build_vision_tower",
    "get_anyres_image_grid_shape",
    "unpad_image",
]

logger = logging.getLogger(__name__)

Images = torch.Tensor | Sequence[torch.Tensor]
Maybe = torch.Tensor | None
Prepared = tuple[Maybe, Maybe, Maybe, Any, Maybe, Maybe]


def _words(modalities: Sequence[str] | None) -> dict[str, Sequence[str]]:
    """Keywords for methods of which other projects have versions that know no videos."""
    return {} if modalities is None else {"modalities": modalities}


class LlavaMetaModel(_LLM):
    """Adds `vision_tower`, `mm_projector` and `image_newline` to the LLM's model, the part without head."""

    vision_tower: VisionTower | list[VisionTower]  # the tower, or a list that hides it from FSDP
    # positions, counted through (B, L), that go on to the head, as one row; None: all, as rows
    positions_for_head: torch.Tensor | None = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.attach_vision(config)

    def attach_vision(self, config: PreTrainedConfig) -> None:
        """Give the model the tower and projector that its config names, still without the tower's weights."""
        settings = MultimodalConfig.of(config)
        if settings.vision_tower:
            self.vision_tower = build_vision_tower(config, delay_load=True)
            # device_map="auto" puts a tower on one device; the head's class collects the names from here
            set_no_split_modules(self, [*no_split_modules(self), *tower_class_names()])
            check_widths(config)
            self.mm_projector = build_vision_projector(config, delay_load=True)
            if "unpad" in settings.merge_type:
                self.image_newline = nn.Parameter(torch.empty(config.hidden_size))
                nn.init.normal_(self.image_newline, std=config.hidden_size**-0.5)  # if built from scratch

    def forward(self, *args: object, **kwargs: object) -> Any:
        """Run the LLM's model; while a loss is computed, its head gets labelled positions (1, n, C) only."""
        output = super().forward(*args, **kwargs)
        if self.positions_for_head is not None:
            states = output.last_hidden_state  # (B, L, C)
            output.last_hidden_state = states.flatten(0, 1)[self.positions_for_head.to(states.device)][None]
        return output

    def get_vision_tower(self) -> Any:
        """Return the vision tower, None if the model has none."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower  # FSDP callers hide it in a list

    def initialize_vision_modules(self, model_args: VisionArguments, fsdp: object = None) -> None:
        """Give the model its tower and projector for training, as `model_args` says; writes them to the
        config.

        Reads `vision_tower`, `mm_vision_select_layer`, `mm_vision_select_feature`, `mm_projector_type`,
        `mm_patch_merge_type` and `pretrain_mm_mlp_adapter` (file with trained projector weights). A new
        projector starts from torch's default initialisation, `image_newline` from N(0, 1/C). Raises
        CheckpointError when the projector file does not fit.
        """
        wanted = VisionSettings.of(model_args)
        tower = self.get_vision_tower()
        if tower is None:
            tower = build_vision_tower(model_args)
            self.vision_tower = [tower] if fsdp and not wanted.unfreeze_mm_vision_tower else tower
        else:
            tower.load_model()
            tower.requires_grad_(False)  # from_pretrained makes weights of the checkpoint trainable
        config = self.config
        config.mm_vision_tower = wanted.vision_tower
        config.use_mm_proj = True
        config.mm_projector_type = wanted.mm_projector_type
        config.mm_hidden_size = tower.hidden_size
        config.mm_vision_select_layer = wanted.mm_vision_select_layer
        config.mm_vision_select_feature = wanted.mm_vision_select_feature
        config.mm_patch_merge_type = wanted.mm_patch_merge_type
        if tower.resolution is not None:
            config.mm_vision_resolution = tower.resolution
        tower.select_layer = config.mm_vision_select_layer
        tower.select_feature = config.mm_vision_select_feature

        if getattr(self, "mm_projector", None) is None:
            check_widths(config)
            self.mm_projector = build_vision_projector(config)
        self.mm_projector.requires_grad_(True)  # LoRA and earlier stages may have frozen it
        if "unpad" not in config.mm_patch_merge_type and getattr(self, "image_newline", None) is not None:
            logger.warning("image_newline is dropped, mm_patch_merge_type is %s", config.mm_patch_merge_type)
            del self.image_newline
        if "unpad" in config.mm_patch_merge_type and getattr(self, "image_newline", None) is None:
            self.image_newline = nn.Parameter(
                torch.randn(config.hidden_size, dtype=self.dtype) * config.hidden_size**-0.5
            )
        if wanted.pretrain_mm_mlp_adapter:
            self.load_projector(read_tensors(wanted.pretrain_mm_mlp_adapter), wanted.pretrain_mm_mlp_adapter)

    def load_projector(self, weights: dict[str, torch.Tensor], source: str) -> None:
        """Fill the projector from weights named `...mm_projector.*`; `source` is named in errors."""
        newline = getattr(self, "image_newline", None)
        fill_projector(self.mm_projector, newline, weights, source, self.config.mm_projector_type)


class LlavaMetaForCausalLM(_LLM):
    """Adds images to an LLM's `forward` and `generate`; one implementation for all LLM families.

    Stands before the LLM's class in the bases, so that `super()` is the LLM.
    """

    # the reference averages the loss over each micro-batch; a forward with **kwargs would switch the Trainer
    # to normalising by the token count of the whole step
    accepts_loss_kwargs = False

    # in training mode logits are computed only where labels are, and the output has none; False: all logits
    supervised_logits_only = True

    # without logits, samples stand one after the other in one row instead of padded rows (--packing)
    packs_samples = False

    def get_model(self) -> Any:
        """Return the model without its head."""
        return self.base_model

    def get_vision_tower(self) -> Any:
        """Return the vision tower, None if the model has none."""
        return self.get_model().get_vision_tower()

    def encode_images(self, images: Images) -> Any:
        """Return the projected features (N, P, C) of images (N, 3, H, W), or of a list of (3, H, W)."""
        features = self.get_vision_tower()(images)
        if torch.is_tensor(features):
            return self._project(features)
        return list(self._project(torch.cat(features)).split([len(one) for one in features]))

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        projector = self.get_model().mm_projector
        weight = next(projector.parameters(), None)
        return projector(features if weight is None else features.to(weight))

    def image_features(
        self,
        images: Images,
        image_sizes: Sequence[Sequence[int]] | None,
        modalities: Sequence[str] | None = None,
    ) -> list[torch.Tensor]:
        """Return one feature sequence (length, C) an image or video, merged as the config says; see Encoder.

        The tower runs once. modalities: "image" or "video" for each, by default images.
        """
        tower, settings = self.get_vision_tower(), MultimodalConfig.of(self.config)
        return Encoder(
            settings=settings,
            encode=self.encode_images,
            tower=tower,
            project=self._project,
            tower_side=tower.num_patches_per_side,
            side=projected_tile(settings, tower.tile_features).side,
            tile_size=tower.tile_size,
            image_newline=getattr(self.get_model(), "image_newline", None),
            grid_of=get_anyres_image_grid_shape,  # looked up here: other projects replace these two
            unpad=unpad_image,
        )(images, image_sizes, modalities)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        modalities: Sequence[str] | None = None,
    ) -> Prepared:
        """Replace image tokens (-200) in input_ids (B, T) by image features.

        Returns (input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels). Without
        images, or for a single token (decoding through the cache), the ids come back as they are and
        inputs_embeds is None; otherwise input_ids is None and inputs_embeds is (B, L, C), rows cut to
        `tokenizer_model_max_length` and padded on `tokenizer_padding_side`. What was None among mask,
        positions and labels stays None. Raises UserError when image tokens and images differ in number.
        """
        if input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        if self.get_vision_tower() is None or images is None or len(images) == 0:
            splice.refuse_image_tokens(input_ids)
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        rows = self._spliced_rows(input_ids, attention_mask, labels, images, image_sizes, modalities)
        batch = splice.pad_rows(rows, side=MultimodalConfig.of(self.config).padding_side)
        return (
            None,
            None if position_ids is None else batch.position_ids,
            None if attention_mask is None else batch.attention_mask.to(attention_mask.dtype),
            past_key_values,
            batch.embeds,
            None if labels is None else batch.labels,
        )

    def _spliced_rows(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        images: Images | None,
        image_sizes: Sequence[Sequence[int]] | None,
        modalities: Sequence[str] | None,
    ) -> list[SplicedRow]:
        """Embed each row without its padding, images in their places, cut to the longest length."""
        settings = MultimodalConfig.of(self.config)
        if settings.tune_projector and settings.use_im_start_end:
            raise NotImplementedError(
                "Training the projector alone (tune_mm_mlp_adapter) together with mm_use_im_start_end is "
                "not supported."
            )
        features = []
        if images is not None and len(images) > 0:
            features = self.image_features(images, image_sizes, **_words(modalities))
        keep = (
            torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        )
        all_labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        rows = splice.splice_rows(
            [ids[mask] for ids, mask in zip(input_ids, keep, strict=True)],
            [row[mask] for row, mask in zip(all_labels, keep, strict=True)],
            features,
            self.get_input_embeddings(),
        )
        end = settings.max_length  # None: rows stay whole
        return [SplicedRow(row.embeds[:end], row.labels[:end]) for row in rows]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        return_dict: bool | None = None,
        skip_logits: bool | None = None,
        modalities: Sequence[str] | None = None,
        **kwargs: object,
    ) -> Any:
        """Run the LLM on input_ids (B, T) whose image tokens stand for `images` (shapes: `image_features`).

        Returns the LLM's output: loss (if labels), logits (B, L, V) with L counting image features,
        past_key_values. With labels and skip_logits (default: in training mode, see
        `supervised_logits_only`) logits are None, and the loss of each sample is told (SupervisedOutput).
        """
        skip_logits = self.training and self.supervised_logits_only if skip_logits is None else skip_logits
        samples = None if input_ids is None else input_ids.shape[0]
        if skip_logits and self.packs_samples and input_ids is not None and labels is not None:
            rows = self._spliced_rows(input_ids, attention_mask, labels, images, image_sizes, modalities)
            inputs_embeds, labels, position_ids = splice.pack_rows(rows)
            input_ids, attention_mask, use_cache = None, None, False
            kwargs["sample_lengths"] = [len(row.labels) for row in rows]
        elif inputs_embeds is None and input_ids is not None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids,
                    position_ids,
                    attention_mask,
                    past_key_values,
                    labels,
                    images,
                    image_sizes,
                    **_words(modalities),
                )  # fmt: skip
            )
        optional = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
            "position_ids": position_ids,  # MPT has none: ALiBi works on distances
        }
        kwargs.update({name: value for name, value in optional.items() if value is not None})
        kwargs.update(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        if labels is not None and skip_logits:
            return self._supervised_output(labels, samples or labels.shape[0], kwargs)
        return super().forward(labels=labels, **kwargs)

    def _supervised_output(
        self, labels: torch.Tensor, count: int, inputs: dict[str, Any]
    ) -> SupervisedOutput:
        """Run the LLM's own forward, its head only where labels are; count: samples in the batch."""
        positions, targets = supervised_positions(labels)
        if len(labels) == count:
            samples = torch.arange(count, device=labels.device)[:, None].expand_as(labels)
        else:  # packed: positions start again with each sample
            samples = (inputs["position_ids"] == 0).cumsum(1) - 1
        body = self.get_model()
        body.positions_for_head = positions
        try:
            output = super().forward(**{**inputs, "return_dict": True})
        finally:
            body.positions_for_head = None
        logits = output.logits  # (1, n, V); (B, L, V) from a class whose model stands before the mixin
        if logits.shape[:2] != (1, len(positions)):
            logits = logits.flatten(0, 1)[positions.to(logits.device)]
        loss, sums, counts = losses_of_samples(
            logits.flatten(0, -2), targets, samples.flatten()[positions], count
        )
        balance = getattr(output, "aux_loss", None)  # of a mixture of experts that is asked for it
        if isinstance(balance, torch.Tensor):
            loss = loss + self.router_aux_loss_coef * balance.to(loss.device)
        return SupervisedOutput(
            loss=loss,
            loss_sums=sums,
            loss_counts=counts,
            tokens_read=read_by(samples, inputs["attention_mask"], count),
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | Sequence[int] | None = None,
        images: Images | Image.Image | Video | Sequence[Image.Image | Video] | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        **kwargs: object,
    ) -> Any:
        """Generate from token ids (B, T) or (T,) and images; returns the new ids only (B, new).

        Pillow images and `llava.video.Video` objects are processed here; of tensors `modalities=` tells which
        are videos. Rows may be padded on either side, as attention_mask says; other keywords are those of
        transformers' `generate`. Text under its word, `input_ids=` without images, comes back as there, with
        the prompt in front, which its pipelines cut off. Raises UserError for what is no prompt,
        NotImplementedError for inputs_embeds.
        """
        if "inputs_embeds" in kwargs:
            raise NotImplementedError(
                "generate() builds inputs_embeds from inputs and images; pass those instead."
            )
        named = kwargs.pop("input_ids", None)
        with_prompt = inputs is None and images is None
        ids: Any = checked_ids(named if inputs is None else inputs, self.config.vocab_size)
        ids = ids.to(self.get_input_embeddings().weight.device)
        positions = checked_beside(kwargs.pop("position_ids", None), ids, "position_ids")
        mask = checked_beside(kwargs.pop("attention_mask", None), ids, "attention_mask")
        modalities = cast("Sequence[str] | None", kwargs.pop("modalities", None))
        embeds = None
        if images is not None:
            processor = getattr(self.get_vision_tower(), "image_processor", None)
            pixels, image_sizes, found = checked_images(images, image_sizes, processor, self.config, len(ids))
            ids, positions, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                ids, positions, mask, None, None, pixels, image_sizes, **_words(found or modalities)
            )
        if embeds is None:
            splice.refuse_image_tokens(ids)
            embeds = ids if with_prompt else self.get_input_embeddings()(ids)
        embeds, mask, positions = splice.padded_left(embeds, mask, positions)
        if positions is not None:
            kwargs["position_ids"] = positions
        kwargs["input_ids" if with_prompt else "inputs_embeds"] = embeds
        return super().generate(attention_mask=mask, **kwargs)

    def initialize_vision_tokenizer(self, model_args: ImageTokenArguments, tokenizer: Tokenizer) -> None:
        """Add the image tokens that `model_args` asks for to the tokenizer, and rows for them to the
        embeddings.

        `<im_start>` and `<im_end>` start from the mean of the old rows, or from the projector file of stage 1
        (`pretrain_mm_mlp_adapter`) if it has them; in stage 1 (`tune_mm_mlp_adapter`) only input rows are
        trained.
        """
        add_image_tokens(
            self,
            tokenizer,
            patch_token=model_args.mm_use_im_patch_token,
            start_end=model_args.mm_use_im_start_end,
            projector_file=model_args.pretrain_mm_mlp_adapter,
        )
        if model_args.tune_mm_mlp_adapter and (
            model_args.mm_use_im_start_end or model_args.mm_use_im_patch_token
        ):
            self.get_input_embeddings().requires_grad_(bool(model_args.mm_use_im_start_end))
            self.get_output_embeddings().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: object, **kwargs: object
    ) -> Any:
        """Load as transformers does; see checkpoints.class_loading for what is added."""
        load = super().from_pretrained
        return load_class(load, cls.base_model_prefix, pretrained_model_name_or_path, args, kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: object) -> None:
        """Save as transformers does, under the reference's key names; see checkpoints.saving."""
        save_whole_model(self, super().save_pretrained, save_directory, kwargs)
