"""The small data set of the documentation: every record can be trained on, and the shards hold the same."""

from __future__ import annotations

import json
from pathlib import Path

from llava.train.data.streaming import find_shards, read_shard
from llava.train.data.table import load_records
from llava.train.records import find_fault
from playground import colours


def test_records_and_shards(tmp_path: Path) -> None:
    colours.write(tmp_path, 16)
    for name in ("pretrain.json", "finetune.json"):
        records = load_records(tmp_path / name)
        assert len(records) == 16
        for record in records:
            images = record.get("image", [])
            for image in images if isinstance(images, list) else [images]:
                assert (tmp_path / "images" / image).is_file()
    streamed = [one for shard in find_shards(str(tmp_path / "shards")) for one in read_shard(shard)]
    assert all(find_fault(one.record) == "" for one in streamed)
    dialogs = {one["id"]: one for one in json.loads((tmp_path / "finetune.json").read_text())}
    for one in streamed:
        expected = dialogs.pop(one.record["id"])
        assert one.record["conversations"] == expected["conversations"]
        names = expected.get("image", [])
        assert len(one.images) == (len(names) if isinstance(names, list) else 1)
    assert not dialogs
