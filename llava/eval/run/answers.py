"""The answers file of a run: what is in it, whose question each record answers, and in which order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.tasks.base import Ask, Record, Said, Task
from llava.lines import whole_objects
from llava.utils import UserError, shortened

# Two answers that have nothing in common: what differs between their records depends on the answer.
_PROBES = (
    Said("An answer of a model.", "model one", "answer one"),
    Said("42, something else", "another model", "answer two"),
)


@dataclass(frozen=True)
class AnswersFile:
    """The records of an answers file in its order; broken: what is wrong with its other lines."""

    path: Path
    records: tuple[Record, ...]
    broken: tuple[str, ...]


def read_answers(path: Path) -> AnswersFile:
    """Read an answers file: a JSON object a line, or several on one (as one program of the reference writes).

    Lines that are no JSON objects are told in `broken`; whole objects in front of a fault count. Raises
    UserError for a file that cannot be read.
    """
    if path.is_dir():
        raise UserError(f"{shortened(path)} is a folder; expected a file of answers, one JSON object a line")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the answers file {shortened(path)} cannot be read: {error.strerror}") from error
    records: list[Record] = []
    broken: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            objects, _, fault = whole_objects(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            objects, fault = [], str(error)
        records += objects
        if fault:
            broken.append(f"line {number} is no JSON object ({' '.join(fault.split())[:120]})")
    return AnswersFile(path, tuple(records), tuple(broken))


class Identity:
    """Recognises whose question a record answers: by all its fields that do not depend on the answer.

    So a question counts as answered when its id and its prompt are the same, and an id that several questions
    share is no trouble. Fields that the records of this task have not are passed over: others write more.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._varying: set[str] = set()
        self._fields: set[str] = set()

    def of_ask(self, ask: Ask) -> str:
        """Return what the record of a question is known by."""
        one, two = (_plain(self._task.record(ask, said)) for said in _PROBES)
        self._varying |= {name for name in one if one[name] != two.get(name)}
        self._fields |= set(one)
        return self._name(one)

    def of_record(self, record: Record) -> str:
        """Return what a record is known by; after all questions were seen."""
        return self._name({name: value for name, value in record.items() if name in self._fields})

    def _name(self, record: Record) -> str:
        return json.dumps({name: record[name] for name in sorted(record) if name not in self._varying})


def _plain(record: Record) -> Record:
    """Return a record as it comes back from a file."""
    return json.loads(json.dumps(record))


@dataclass(frozen=True)
class Matched:
    """Records beside the questions that they answer.

    answered: places of questions that have a record. records: those of questions, in the questions' order.
    unexpected: records of no question. surplus: further records of questions that have one.
    """

    answered: frozenset[int]
    records: tuple[Record, ...]
    unexpected: tuple[Record, ...]
    surplus: tuple[Record, ...]


class Matcher:
    """Finds the questions of records; made once for the questions of a run."""

    def __init__(self, task: Task, asks: Sequence[Ask]) -> None:
        self._identity = Identity(task)
        self._places: dict[str, list[int]] = {}
        for place, ask in enumerate(asks):
            self._places.setdefault(self._identity.of_ask(ask), []).append(place)
        self._asks = asks

    def match(self, records: Iterable[Record]) -> Matched:
        """Find the question of each record. Of several records of one question the first counts."""
        found: dict[int, Record] = {}
        seen: Counter[str] = Counter()
        unexpected, surplus = [], []
        for record in records:
            name = self._identity.of_record(record)
            places = self._places.get(name)
            if places is None:
                unexpected.append(record)
            elif seen[name] < len(places):
                found[places[seen[name]]] = record
                seen[name] += 1
            else:
                surplus.append(record)
        ordered = tuple(found[place] for place in sorted(found))
        return Matched(frozenset(found), ordered, tuple(unexpected), tuple(surplus))

    def repeated(self) -> list[str | int]:
        """Return the ids of questions that stand in the data more than once, prompt and all."""
        return [self._asks[places[0]].id for places in self._places.values() if len(places) > 1]


def line_of(record: Record) -> str:
    """Return a record as the line of a file that the reference writes."""
    return json.dumps(record)
