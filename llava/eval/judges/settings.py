"""Which model judges, where it is reached, and how: the flags --judge-..., and what they become."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llava.arguments import ProgramParser, output_path, plain_text
from llava.eval.tasks.base import Option
from llava.utils import UserError, check_whole, shortened

KEY_VARIABLE = "OPENAI_API_KEY"
NO_DEFAULT = (
    "there is no default: the judges that published numbers were measured with (gpt-4-0314, gpt-4-0613, "
    "gpt-3.5-turbo) are shut down, and numbers of another judge are not comparable with them"
)
# key, default, what it is; each is a flag of the programs and an option of the tasks that are judged.
_FLAGS: tuple[tuple[str, str | None, str], ...] = (
    ("judge-model", None, f"name of the model that judges; {NO_DEFAULT}"),
    ("judge-base-url", None, "address of another server in OpenAI's style, such as http://127.0.0.1:8000/v1"),
    ("judge-key-env", KEY_VARIABLE, "environment variable that holds the key"),
    ("judge-retries", "4", "how often a request that failed is sent again"),
    ("judge-timeout", "120", "seconds to wait for a reply"),
    ("judge-parallel", "4", "requests under way at a time"),
    (
        "judge-cache",
        None,
        "folder of replies that are kept by prompt and model (default: beside the reviews)",
    ),
    ("judge-price-in", None, "dollars for a million tokens that the judge reads, for the estimate"),
    ("judge-price-out", None, "dollars for a million tokens that the judge writes, for the estimate"),
)
JUDGE_OPTIONS = tuple(
    Option(
        key,
        f"{what} (default: {default})" if default else what,
        scoring=True,
        is_path=key == "judge-cache",
        compared=False,  # a result says who judged
    )
    for key, default, what in _FLAGS
)
RULE_OPTION = Option(
    "rule",
    "JSON file of rules, category -> role and prompt (default: the built-in ones)",
    scoring=True,
    is_path=True,
)


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is asked. retries: after the first try; timeout in seconds; prices: dollars per 10^6."""

    model: str
    base_url: str | None = None
    key: str | None = None
    retries: int = 4
    timeout: float = 120.0
    parallel: int = 4
    max_tokens: int = 1024
    cache: Path | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        """Raise UserError that names the setting that cannot be used."""
        if not self.model.strip():
            raise UserError(f"--judge-model is missing; name the model that judges: {NO_DEFAULT}")
        check_whole("--judge-retries", self.retries, 0)
        check_whole("--judge-parallel", self.parallel, 1)
        check_whole("--max-tokens", self.max_tokens, 1)
        if not 0 < self.timeout <= 86400:
            raise UserError(
                f"--judge-timeout is {self.timeout}; expected seconds, more than 0 and at most a day"
            )
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise UserError(
                f"--judge-base-url is {shortened(self.base_url)!r}; expected an address that begins with "
                "http:// or https://, such as http://127.0.0.1:8000/v1"
            )
        for name, price in (("in", self.price_in), ("out", self.price_out)):
            if price is not None and price < 0:
                raise UserError(f"--judge-price-{name} is {price}; expected 0 or more dollars")


def add_judge_flags(parser: ProgramParser) -> None:
    """Add the --judge-... flags to a program, all as texts; `settings_of` reads them."""
    group = parser.add_argument_group("the judge")
    for key, default, what in _FLAGS:
        kind = output_path if key == "judge-cache" else plain_text
        told = f"{what} (default: {default})" if default else what
        group.add_argument(f"--{key}", type=kind, default=default, help=told)


def judge_options(args: argparse.Namespace) -> dict[str, str]:
    """Return the judge's flags that were given, or have a default, by their key."""
    given = vars(args)
    named = {key: given[key.replace("-", "_")] for key, _, _ in _FLAGS}
    return {key: value for key, value in named.items() if value is not None}


def settings_of(options: Mapping[str, str], *, max_tokens: int = 1024) -> JudgeSettings:
    """Turn flags, or the options of a task, into settings; raises UserError that names a wrong one."""
    defaults = {key: default for key, default, _ in _FLAGS if default is not None}
    given = {**defaults, **options}
    cache = given.get("judge-cache")
    return JudgeSettings(
        model=given.get("judge-model", ""),
        base_url=given.get("judge-base-url"),
        key=os.environ.get(given["judge-key-env"]) or None,
        retries=_whole(given, "judge-retries"),
        timeout=_number(given, "judge-timeout"),
        parallel=_whole(given, "judge-parallel"),
        max_tokens=max_tokens,
        cache=Path(cache) if cache else None,
        price_in=_number(given, "judge-price-in") if "judge-price-in" in given else None,
        price_out=_number(given, "judge-price-out") if "judge-price-out" in given else None,
    )


def _number(given: Mapping[str, str], key: str) -> float:
    try:
        value = float(given[key])
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(f"--{key} is {shortened(given[key], 60)!r}; expected a number")
    return value


def _whole(given: Mapping[str, str], key: str) -> int:
    try:
        return int(given[key])
    except ValueError:
        raise UserError(f"--{key} is {shortened(given[key], 60)!r}; expected a whole number") from None
