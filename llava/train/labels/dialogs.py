"""Do the dialogs of the data fit the template? Asked before a model is loaded, and without a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llava.conversation import find_template
from llava.train.records import DataError, Record, name_record, turns_of

SAMPLED = 10_000  # records, spread over the data; about a second of reading


def check_dialogs(records: Sequence[Record], key: str, *, name: Callable[[int], str] | None = None) -> None:
    """Raise DataError for the first of up to SAMPLED records whose turns the template cannot hold.

    records: without faults of their own. Records that are not sampled are met when they are read. name: of
    the record at an index, where the index alone does not tell.
    """
    template = find_template(key, flag="--version")
    for index in range(0, len(records), max(1, -(-len(records) // SAMPLED))):
        record = records[index]
        problem = template.check_dialog(turns_of(record))
        if problem:
            where = name(index) if name else name_record(index, record)
            raise DataError(f"{where}: {problem}; choose another --version than {key}, or other data")
