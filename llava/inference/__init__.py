"""Asking a model: conversations with images, streamed text, batches, checked settings."""

from llava.inference.assistant import Assistant, load
from llava.inference.batch import generate_batch
from llava.inference.chat import ChatSession
from llava.inference.compiled import CompiledDecoder
from llava.inference.decoder import Decoder
from llava.inference.dialog import Answer, Dialog
from llava.inference.loading import open_model
from llava.inference.model import LoadedModel
from llava.inference.sampling import SamplingParams
from llava.inference.sharded import generate_sharded
from llava.inference.streaming import TextStream

__all__ = [
    "Answer",
    "Assistant",
    "ChatSession",
    "CompiledDecoder",
    "Decoder",
    "Dialog",
    "LoadedModel",
    "SamplingParams",
    "TextStream",
    "generate_batch",
    "generate_sharded",
    "load",
    "open_model",
]
