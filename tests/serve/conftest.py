"""An engine without a model, and an application in front of it."""

from __future__ import annotations

import pytest
from asking import client_of
from fake_engine import FakeEngine
from starlette.testclient import TestClient


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    return client_of(engine)
