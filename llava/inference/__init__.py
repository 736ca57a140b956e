"""Asking a model: conversations with images, streamed text, checked settings."""

from llava.inference.chat import ChatSession
from llava.inference.loading import LoadedModel, open_model
from llava.inference.sampling import SamplingParams
from llava.inference.streaming import TextStream

__all__ = ["ChatSession", "LoadedModel", "SamplingParams", "TextStream", "open_model"]
