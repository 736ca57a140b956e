"""Two scored runs of one task side by side: what they are, which questions flipped, what is told."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llava.eval.comparing.statistics import Paired, compare_credits
from llava.eval.run.results import Result
from llava.eval.tasks.base import Ask, Graded, JsonValue, TaskData
from llava.eval.tasks.registry import task_named
from llava.utils import UserError, shortened

_NEEDED = ("task", "split", "options", "scores")
_SCORE = 'a list of scores such as {"name": "all", "value": 98.1}'


@dataclass(frozen=True)
class Scored:
    """A result and what each of its questions earned. name: its model, else its file."""

    path: Path
    result: Result
    graded: tuple[Graded, ...]
    name: str


@dataclass(frozen=True)
class Pair:
    """A question in both runs. ask: None where the data of the task is not there."""

    first: Graded
    second: Graded
    ask: Ask | None = None

    @property
    def change(self) -> float:
        """What the second earned more."""
        return (self.second.credit or 0.0) - (self.first.credit or 0.0)


@dataclass(frozen=True)
class Comparison:
    """Two runs of a task; only_first, only_second: questions that one of them alone has judged."""

    first: Scored
    second: Scored
    pairs: tuple[Pair, ...]
    only_first: int
    only_second: int
    numbers: Paired

    @property
    def flips(self) -> list[Pair]:
        """The questions whose credit changed, the largest losses first."""
        return sorted((one for one in self.pairs if one.change), key=lambda one: one.change)


def graded_path(result: Path) -> Path:
    """Return the file beside a result that says what each question earned."""
    return result.with_name(f"{result.stem.removesuffix('.result')}.graded.jsonl")


def graded_line(one: Graded) -> str:
    """Return a graded question as a line of that file."""
    return json.dumps(asdict(one))


def result_of(path: Path) -> Path:
    """Return the result that is meant: itself, or that beside an answers file."""
    return path if path.suffix == ".json" else path.with_name(f"{path.stem}.result.json")


def read_scored(path: Path) -> Scored:
    """Read a result, or that of an answers file. Raises UserError for what is neither."""
    if path.is_dir():
        raise UserError(f"{shortened(path)} is a folder; name a result (*.result.json) or an answers file")
    result = result_of(path)
    try:
        content = json.loads(result.read_text(encoding="utf-8"))
        graded = graded_path(result).read_text(encoding="utf-8").splitlines()
        if not isinstance(content, dict) or not all(name in content for name in _NEEDED):
            raise TypeError(f"it lacks {', '.join(_NEEDED[:-1])} or {_NEEDED[-1]}")
        _check_scores(content["scores"])
    except OSError as error:
        raise UserError(
            f"{shortened(error.filename)} cannot be read ({error.strerror}); score the answers first: "
            "python -m llava.eval score TASK --answers FILE"
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{shortened(result)} is no result of llava.eval ({error}); score again") from error
    rows = _read_graded(graded_path(result), graded)
    model = content.get("model")
    name = str(model["id"]) if isinstance(model, dict) and "id" in model else _file_name(result)
    return Scored(result, content, rows, name)


def _check_scores(scores: JsonValue) -> None:
    """Raise TypeError for what is not the scores of a result; it says what was found and expected."""
    if not isinstance(scores, list):
        raise TypeError(f"its scores are {shortened(repr(scores), 120)}, expected {_SCORE}")
    for one in scores:
        named = isinstance(one, dict) and isinstance(one.get("name"), str)
        if not named or not _is_number(one.get("value"), finite=False):
            raise TypeError(f"{shortened(repr(one), 120)} is among its scores, expected {_SCORE}")


def _read_graded(path: Path, lines: Sequence[str]) -> tuple[Graded, ...]:
    """Return what each question earned. Raises UserError for a line that no scorer writes."""
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = Graded(**json.loads(line))
        except (ValueError, TypeError):
            row = None
        if row is None or not _is_graded(row):
            raise UserError(
                f"{shortened(path)}, line {number}: {shortened(line, 120)}; expected what a question earned, "
                'such as {"id": 1, "prediction": "4", "expected": "4", "credit": 1.0}; score again'
            )
        rows.append(row)
    return tuple(rows)


def _is_graded(row: Graded) -> bool:
    texts = isinstance(row.prediction, str) and isinstance(row.expected, str)
    return texts and isinstance(row.id, str | int) and (row.credit is None or _is_number(row.credit))


def _is_number(value: object, *, finite: bool = True) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return not finite or math.isfinite(value)


def _file_name(result: Path) -> str:
    return result.stem.removesuffix(".result")


def _told(value: JsonValue) -> str:
    return str(value) if value not in ("", None) else "not named"


def compare(first: Path, second: Path) -> Comparison:
    """Pair the questions of two results. Raises UserError for results of other tasks."""
    one, two = read_scored(first), read_scored(second)
    mine, theirs = _same(one.result), _same(two.result)
    for name in mine:
        if mine[name] != theirs[name]:
            raise UserError(
                f"{name} is {_told(mine[name])} in {shortened(one.path)} and {_told(theirs[name])} in "
                f"{shortened(two.path)}; only results of the same questions, judged alike, can be compared"
            )
    if one.name == two.name:  # one model with other settings
        one, two = (replace(each, name=f"{each.name} ({_file_name(each.path)})") for each in (one, two))
    left, right = dict(_keyed(one.graded)), dict(_keyed(two.graded))
    asks = _asks(one.result)
    pairs = tuple(Pair(left[key], right[key], asks.get((key[0], key[2]))) for key in left if key in right)
    if not pairs:
        raise UserError(
            f"{shortened(one.path)} and {shortened(two.path)} have no judged question in common; "
            "there is nothing to compare"
        )
    numbers = compare_credits(
        [one.first.credit or 0.0 for one in pairs],
        [one.second.credit or 0.0 for one in pairs],
        [place if one.first.group is None else f"group {one.first.group}" for place, one in enumerate(pairs)],
    )
    return Comparison(one, two, pairs, len(left) - len(pairs), len(right) - len(pairs), numbers)


def _same(result: Result) -> dict[str, JsonValue]:
    """Return what two results must have in common: task, split, who judged, options that matter."""
    options = result["options"]
    assert isinstance(options, Mapping)
    try:
        free = {one.key for one in task_named(str(result["task"])).options if not one.compared}
    except UserError:  # of a task that is not in the table
        free = set()
    judge = result.get("judge")
    who = judge.get("models") if isinstance(judge, Mapping) else options.get("judge-model")
    kept = {key: value for key, value in options.items() if key not in free}
    return {"task": result["task"], "split": result["split"], "judge": who, "options": kept}


def _other_data(one: Result, two: Result) -> list[str]:
    """Return the keys of data files that both results were made of, and that differ."""
    mine, theirs = (each.get("data") for each in (one, two))
    if not isinstance(mine, Mapping) or not isinstance(theirs, Mapping):
        return []
    return sorted(key for key in mine if key in theirs and _hash(mine[key]) != _hash(theirs[key]))


def _hash(file: JsonValue) -> JsonValue:
    return file.get("sha256") if isinstance(file, Mapping) else None


Key = tuple[str, str, int]  # id, expected answer, and how many such there were before


def _keyed(graded: Sequence[Graded]) -> Iterator[tuple[Key, Graded]]:
    """Yield judged questions under a key that also tells questions apart that share an id."""
    seen: Counter[tuple[str, str]] = Counter()
    for one in graded:
        if one.credit is not None:
            name = (str(one.id), one.expected)
            yield (*name, seen[name]), one
            seen[name] += 1


def _asks(result: Result) -> dict[tuple[str, int], Ask]:
    """Return the questions by id and how many of this id there were before; {} where the data is gone."""
    found: dict[tuple[str, int], Ask] = {}
    seen: defaultdict[str, int] = defaultdict(int)
    try:
        task = task_named(str(result["task"]))
        for ask in task.asks(_data_of(result)):
            found[str(ask.id), seen[str(ask.id)]] = ask
            seen[str(ask.id)] += 1
    except (UserError, KeyError, TypeError):
        return {}
    return found


def _data_of(result: Result) -> TaskData:
    """Return the data that a result was made of."""
    told = result["data_from"]
    options = result["options"]
    assert isinstance(told, Mapping) and isinstance(options, Mapping)
    files = told["files"]
    assert isinstance(files, Mapping)
    return TaskData(
        Path(str(told["root"])),
        files={str(key): Path(str(value)) for key, value in files.items()},
        split=str(result["split"]) or None,
        options={str(key): str(value) for key, value in options.items()},
    )


def comparison_text(found: Comparison) -> list[str]:
    """Return a comparison as lines for a terminal."""
    one = found.numbers
    lines = [
        f"{found.first.name}: {one.first:.2f} %, {found.second.name}: {one.second:.2f} %, "
        f"over {one.n:,} questions" + (f" in {one.groups:,} groups" if one.groups != one.n else ""),
        f"difference {one.difference:+.2f}, 95 % of resamples between {one.low:+.2f} and {one.high:+.2f}, "
        f"standard error {one.stderr:.2f}",
        f"better in {one.gained:,} questions, worse in {one.lost:,}",
    ]
    if one.mcnemar is not None:
        lines.append(f"McNemar's exact test: p = {one.mcnemar:.3g}")
    if found.only_first or found.only_second:
        lines.append(
            f"not compared: {found.only_first:,} questions of the first alone, "
            f"{found.only_second:,} of the second"
        )
    if other := _other_data(found.first.result, found.second.result):
        lines.append(f"the two were scored with other versions of: {', '.join(other)}")
    return lines


def comparison_result(found: Comparison) -> Result:
    """Return a comparison as JSON."""
    return {
        "task": found.first.result["task"],
        "first": {"name": found.first.name, "result": str(found.first.path)},
        "second": {"name": found.second.name, "result": str(found.second.path)},
        **asdict(found.numbers),
        "only_first": found.only_first,
        "only_second": found.only_second,
        "other_data": _other_data(found.first.result, found.second.result),
        "flipped": [one.first.id for one in found.flips],
    }
