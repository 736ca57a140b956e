"""`Family`: everything that is special about one LLM family, said in the file of that family."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

# attention of transformers that can be asked for
KERNELS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True)
class Family:
    """One LLM family: its text model's `model_type`, the LLaVA classes on it, and what else is its own."""

    base_type: str
    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    attention: tuple[str, ...] = KERNELS  # what its classes in transformers offer
    packable: bool | None = None  # whether its attention keeps packed samples apart; None: to be tried out
    liger: str | None = None  # x of liger_kernel's apply_liger_kernel_to_x
    exports: bool = True  # whether transformers' LLaVA classes can hold it: names of weights as Llama's
    # names of modules and fields
    embedding: str = "embed_tokens"
    final_norm: str = "norm"
    head: str = "lm_head"
    positions: str = "max_position_embeddings"  # field of the config: the longest input
    spare_rows: bool = False  # whether embeddings may have more rows than there are tokens, which stay
    made: bool = False  # by the factory; an entry that somebody wrote goes before it

    @property
    def llava_type(self) -> str:
        """The `model_type` of its LLaVA."""
        return self.config_class.model_type

    @property
    def llm_class(self) -> type[PreTrainedModel] | None:
        """Transformers' class that its LLaVA stands on, None for one that is not from there."""
        ancestors = self.model_class.__mro__
        return next((one for one in ancestors if one.__module__.startswith("transformers.models.")), None)

    @property
    def body(self) -> str:
        """Name of the module that is the LLM without its head."""
        return self.model_class.base_model_prefix

    @property
    def token_rows(self) -> tuple[str, str]:
        """Names of the weights with one row for each token."""
        return f"{self.body}.{self.embedding}.weight", f"{self.head}.weight"

    @property
    def final_norm_weight(self) -> str:
        """Name of the weight of the last norm."""
        return f"{self.body}.{self.final_norm}.weight"


FAMILIES: list[Family] = []


def register_family(family: Family) -> None:
    """Add a family, of this library or of another project, and tell transformers' Auto classes.

    A family that is registered again is replaced, and so is one that the factory has made. Raises ValueError
    for a `model_type` that other classes have.
    """
    for known in list(FAMILIES):
        types = {known.llava_type} if known.made or family.made else {known.base_type, known.llava_type}
        if types & {family.base_type, family.llava_type}:
            if not known.made and known.model_class.__name__ != family.model_class.__name__:
                raise ValueError(
                    f"{family.model_class.__name__} is for {family.base_type} and {family.llava_type}, which "
                    f"{known.model_class.__name__} has taken; choose another model_type for its config."
                )
            FAMILIES.remove(known)
    FAMILIES.append(family)
    AutoConfig.register(family.llava_type, family.config_class, exist_ok=True)
    AutoModelForCausalLM.register(family.config_class, family.model_class, exist_ok=True)
    # mixtures of experts are stored under other names than they have in memory
    for name in (family.llm_class.__name__ if family.llm_class else "", family.base_type):
        if mapping := get_checkpoint_conversion_mapping(name):
            register_checkpoint_conversion_mapping(family.model_class.__name__, mapping, overwrite=True)
            break
