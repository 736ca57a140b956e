"""Engines that end with their test."""

from __future__ import annotations

import pytest

from llava.inference.engine import Engine


@pytest.fixture
def engine_of():
    """Makes engines, and closes them."""
    made = []

    def make(loaded, **options):
        made.append(Engine(loaded, **{"memory_bytes": 2**30, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def engine(engine_of, llama):
    return engine_of(llama)
