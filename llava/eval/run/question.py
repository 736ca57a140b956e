"""What eval_model does once the images are there: load the model if need be, and ask it."""

from __future__ import annotations

from typing import Any

from PIL import Image

from llava.inference.chat import ChatSession
from llava.inference.loading import LoadedModel, open_model
from llava.inference.program import quiet_libraries
from llava.inference.prompt import pick_conv_mode
from llava.inference.sampling import SamplingParams
from llava.mm_utils import get_model_name_from_path
from llava.protocols import QuestionArguments
from llava.utils import disable_torch_init


def ask(
    args: QuestionArguments,
    images: list[Image.Image],
    model: tuple[Any, Any, Any, int] | None,
    *,
    quiet: bool,
) -> str:
    """Return the answer to args.query about images; see llava.eval.run_llava.eval_model for the fields.

    quiet: silence other libraries, for all of the process.
    """

    def field(name: str, default: object = None) -> Any:
        return getattr(args, name, default)

    disable_torch_init()
    if quiet:
        quiet_libraries()
    params = SamplingParams(
        temperature=field("temperature", 0.2),
        top_p=field("top_p"),
        num_beams=field("num_beams", 1),
        max_new_tokens=field("max_new_tokens", 512),
        seed=field("seed"),
    )
    name = field("model_name") or get_model_name_from_path(args.model_path)
    if model is None:
        model = open_model(args.model_path, field("model_base"), name, device=field("device"))
    loaded = LoadedModel(*model)
    template, _ = pick_conv_mode(field("conv_mode"), name, loaded.model.config)
    session = ChatSession(loaded, template=template)
    return session.ask(args.query, images, params)
