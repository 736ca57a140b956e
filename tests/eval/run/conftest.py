"""A tiny model in float32, and digit questions, for the tests of this room."""

from pathlib import Path

import pytest
from questions import write_questions

from llava.eval.run.local import LocalModel
from llava.eval.tasks.base import TaskData
from llava.inference.loading import LoadedModel, open_model
from llava.inference.sampling import SamplingParams


@pytest.fixture(scope="session")
def tiny(checkpoints: Path) -> LoadedModel:
    """The tiny Llama model on the CPU in float32."""
    return open_model(str(checkpoints / "llava-tiny-v1.5"), device="cpu", dtype="float32")


@pytest.fixture
def asker(tiny: LoadedModel):
    """A function that gives the model with other settings."""

    def make(batch_size: int = 4, **settings) -> LocalModel:
        params = SamplingParams(**{"temperature": 0, "max_new_tokens": 6, **settings})
        return LocalModel(
            tiny, params, model_id="tiny", conv_mode="llava_v1", batch_size=batch_size, weights="w"
        )

    return make


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    """Twelve digit questions."""
    return TaskData(write_questions(tmp_path / "digits"))
