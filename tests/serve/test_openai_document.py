"""The OpenAPI document, judged by schemathesis: bad data is refused, and nothing makes the server fail."""

from __future__ import annotations

import sys

import pytest
from fake_engine import FakeEngine, settings

from llava.serve.openai.app import create_app

if sys.version_info < (3, 11):
    pytest.skip("schemathesis needs Python 3.11", allow_module_level=True)

import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

KEY = "correct-horse-battery"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    ignored_auth,
    unsupported_method,
]


class Lasting(FakeEngine):
    """Schemathesis begins and ends the application with every call."""

    def close(self, drain_seconds: float = 0.0) -> None:
        self.closed.append(drain_seconds)


schema = schemathesis.openapi.from_asgi(
    "/openapi.json",
    create_app(Lasting(), settings(api_key=KEY)),
    headers={"Authorization": f"Bearer {KEY}"},
)


@pytest.mark.slow
@schema.parametrize()
@hypothesis_settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_the_server_keeps_to_its_document(case: schemathesis.Case) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS)
