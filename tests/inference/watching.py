"""Counting what a model runs, for the tests of this room."""

import contextlib


@contextlib.contextmanager
def forwards(model):
    """Collect the number of positions of each forward pass."""
    lengths = []

    def note(module, args, kwargs):
        inputs = kwargs.get("inputs_embeds")
        lengths.append((kwargs["input_ids"] if inputs is None else inputs).shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


@contextlib.contextmanager
def tower_calls(model):
    """Collect one entry a call of the vision tower."""
    calls = []
    handle = model.get_vision_tower().register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()
