"""Samples of which nothing is trained on: counted over all ranks, named; too many stop the run."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from llava.atomic import write_text
from llava.constants import IGNORE_INDEX
from llava.train.records import SAMPLE_KEY, sample_name
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

LOST_KEY = "lost_samples"  # of a batch: names of its samples without labels
REPORT_FILE = "lost_samples.json"
NAMES_SHOWN = 100
CAUSES = (
    "their text confuses the counts of the reference (--label_masks spans does not count), the answers are "
    "empty, or they lie beyond --model_max_length (tokens of images count)"
)


class LostSampleNames:
    """A collator whose batches name the samples in which no token is trained on."""

    def __init__(self, collator: Callable[[Sequence[Any]], dict[str, Any]], max_length: int | None) -> None:
        """max_length: where the collator cuts samples, None if it does not."""
        self._collator = collator
        self._max_length = max_length

    def __call__(self, instances: Sequence[Any]) -> dict[str, Any]:
        """Collate, and add the names of samples without labels."""
        batch = self._collator(instances)
        return {**batch, LOST_KEY: [_name(one) for one in instances if self._is_lost(one)]}

    def _is_lost(self, sample: Mapping[str, Any]) -> bool:
        # the first token is never predicted
        return isinstance(sample, dict) and not bool(
            (sample["labels"][1 : self._max_length] != IGNORE_INDEX).any()
        )


def _name(sample: Mapping[str, Any]) -> int | str:
    if SAMPLE_KEY in sample:
        return sample[SAMPLE_KEY]
    return f"unnamed {zlib.crc32(sample['input_ids'].numpy().tobytes()):08x}"


class LostSamples(TrainerCallback):
    """Counts the samples of a run in which nothing is trained on, each once, whichever rank reads it.

    limit: the share of the run's samples above which it stops. dataset: names samples by index
    (`list_data_dict.name`).
    """

    def __init__(self, limit: float, dataset: object) -> None:
        self.limit = limit
        self.names: dict[int | str, str] = {}  # key of a sample to what people call it; equal on all ranks
        self._dataset = dataset
        self._new: set[int | str] = set()  # of this rank, since the last step
        self._samples = 0  # of the run

    def note(self, batch: dict[str, Any]) -> None:
        """Take the names that LostSampleNames has added out of a batch."""
        self._new.update(batch.pop(LOST_KEY, ()))

    def note_learned(self, names: Sequence[int | str], learned: Sequence[float]) -> None:
        """Take the numbers of tokens that were learned of a batch's samples, cut at the model's length."""
        if len(names) == len(learned):
            self._new.update(name for name, count in zip(names, learned, strict=True) if not count)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Find out how many samples the run reads; a resumed run goes on counting."""
        steps = max(state.max_steps, 1)
        read = steps * args.train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1)
        size = len(self._dataset) if hasattr(self._dataset, "__len__") else read
        self._samples = min(read, size)
        file = Path(args.output_dir) / REPORT_FILE
        if state.global_step and file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))["samples"]
            self.names = {one["sample"]: one["name"] for one in known}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Bring the ranks' findings together. Raises UserError on all of them when too many are lost."""
        fresh = sorted(_union(self._new, args.device) - self.names.keys(), key=str)
        self._new.clear()
        if not fresh:
            return
        self.names.update((key, sample_name(self._dataset, key)) for key in fresh)
        if state.is_world_process_zero:
            self._write(Path(args.output_dir))
        if len(self.names) > self.limit * self._samples:
            raise UserError(
                f"nothing is trained on in {len(self.names)} of the run's {self._samples} samples, more than "
                f"--max_lost_samples {self.limit:g} allows: {CAUSES}. They are {self._listing()}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """List what was lost."""
        if self.names and state.is_world_process_zero:
            logger.warning(
                "nothing was trained on in %d of %d sample(s): %s; %s",
                len(self.names),
                self._samples,
                self._listing(),
                CAUSES,
            )

    def _listing(self) -> str:
        names = list(self.names.values())
        more = f" and {len(names) - NAMES_SHOWN} more (see {REPORT_FILE})" if len(names) > NAMES_SHOWN else ""
        return ", ".join(names[:NAMES_SHOWN]) + more

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        samples = [{"sample": key, "name": name} for key, name in self.names.items()]
        content = {"causes": CAUSES, "samples": samples}
        write_text(folder / REPORT_FILE, json.dumps(content, indent=1, ensure_ascii=False))


def _union(own: set[int | str], device: torch.device) -> set[int | str]:
    """Return what any rank has; nearly always nothing, which costs one number."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return set(own)
    count = torch.tensor(float(len(own)), device=device)
    dist.all_reduce(count)
    if not count:
        return set()
    parts: list[set[int | str]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, own)
    return set().union(*parts)
