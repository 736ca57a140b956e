"""What judged tasks share: which judge, where its reviews are, what is written where there is none."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.atomic import write_text
from llava.eval.judges.judging import Item, Outcome, check_items, estimate_of, judge_all, kept_lines, reviewed
from llava.eval.judges.replies import Scale, Value, value_of
from llava.eval.judges.settings import JUDGE_OPTIONS, RULE_OPTION, JudgeSettings, settings_of
from llava.eval.judges.wording import Rule, read_rules
from llava.eval.tasks.base import JsonValue, Option, Record, Report, TaskData
from llava.utils import UserError

MARK = (
    "judged by {}: a judged number depends on its judge, and is not comparable with published ones, "
    "whose judges "
    "are shut down"
)
OPTIONS = (
    *JUDGE_OPTIONS,
    RULE_OPTION,
    Option(
        "reviews",
        "file of the judge's reviews, which are not asked for again (default: in the data's folder); without "
        "--judge-model its reviews are counted as they are",
        scoring=True,
        is_path=True,
        compared=False,
    ),
)
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Judgement:
    """What is known of the items. outcome: None where nobody judged; written: the file for a judge then."""

    outcome: Outcome | None
    scale: Scale
    notes: tuple[str, ...]
    written: tuple[Path, ...] = ()

    def value(self, key: str | int) -> Value | None:
        """Return what the judge gave a question; None where it has no judgement."""
        line = self.outcome.lines.get(key) if self.outcome else None
        return None if line is None else value_of(line, self.scale)

    def counted(self, report: Report) -> Report:
        """Return a report with what was judged, what was not, and by whom."""
        lost, unread = (
            (0, 0) if self.outcome is None else (len(self.outcome.failed), len(self.outcome.unreadable))
        )
        notes = (*report.notes, *self.notes)
        written = (*report.written, *self.written)
        return replace(
            report, failed=lost, unparsable=unread, notes=notes, written=written, judge=self.by_whom()
        )

    def by_whom(self) -> dict[str, JsonValue]:
        """Return who judged, as the server named it, and by which prompts; {} where nobody did."""
        if self.outcome is None:
            return {}
        lines = self.outcome.lines.values()
        prompts = sorted({str(one["judge_prompt"]) for one in lines if "judge_prompt" in one})
        names = self.outcome.models
        return {
            "model": names[0] if len(names) == 1 else None,  # None: several, or nobody
            "models": list(names),
            "asked_for": sorted({str(one["judge_asked"]) for one in lines if "judge_asked" in one}),
            "prompts": hashlib.sha256("".join(prompts).encode()).hexdigest() if prompts else None,
            "judged": len(self.outcome.lines),
            "kept": self.outcome.kept,
            "cached": self.outcome.cached,
            "retries": self.outcome.retries,
        }


def judge(
    items: Sequence[Item],
    answers: Sequence[Record],
    data: TaskData,
    *,
    scale: Scale,
    instead: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Judgement:
    """Judge items by the model of --judge-model, or count the reviews of --reviews; else write what to judge.

    instead: what a benchmark's own judge takes; None for JSON lines of messages. folder: of the reviews
    (default: `reviews` in the folder of the data).
    """
    check_items(items)
    model = _safe(next((str(one["model_id"]) for one in answers if one.get("model_id")), "answers"))
    settings, earlier = judge_of(data), data.root / "reviews"
    if settings is not None:
        output = reviews_path(data)
        if output is None:
            name = f"{model}.{_safe(settings.model)}.jsonl"
            output = (folder or earlier) / name
            if not output.exists() and _holds(earlier / name, items, settings, scale):
                output = earlier / name
        return _judged(judge_all(items, settings, output, scale=scale), scale)
    if (output_given := reviews_path(data)) is not None:
        return _judged(reviewed(items, output_given, scale), scale)
    place = (
        data.submission or (folder or earlier) / f"{model}.to-judge.{'jsonl' if instead is None else 'json'}"
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    if instead is None:
        rows = ({**one.row, "messages": [dict(message) for message in one.messages]} for one in items)
        write_text(place, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_text(place, json.dumps(instead, indent=2))
    told = estimate_of(items, JudgeSettings("none", max_tokens=MAX_TOKENS))
    return Judgement(
        None,
        scale,
        (f"nobody judged: name a judge with --judge-model ({told}); what it judges is in {place}",),
        (place,),
    )


def _holds(output: Path, items: Sequence[Item], settings: JudgeSettings, scale: Scale) -> bool:
    """Tell whether a file holds reviews of these items by this judge."""
    try:
        return output.is_file() and bool(dict(kept_lines(items, settings.model, output, scale)))
    except UserError:
        return False


def judge_of(data: TaskData) -> JudgeSettings | None:
    """Return the judge that a run names; None for none."""
    return settings_of(data.options, max_tokens=MAX_TOKENS) if "judge-model" in data.options else None


def reviews_path(data: TaskData) -> Path | None:
    """Return the file of --reviews."""
    return Path(data.options["reviews"]) if "reviews" in data.options else None


def rules_of(data: TaskData) -> dict[str, Rule]:
    """Return the rules of --rule, or the built-in ones."""
    return read_rules(Path(data.options["rule"]) if "rule" in data.options else None)


def _judged(outcome: Outcome, scale: Scale) -> Judgement:
    names = ", ".join(one or "an unnamed judge" for one in outcome.models) or "nobody"
    notes = [MARK.format(names), *outcome.notes]
    counts = {"were there before": outcome.kept, "came from the cache": outcome.cached}
    notes += [f"{count} of {len(outcome.lines)} judgements {what}" for what, count in counts.items() if count]
    if outcome.retries:
        notes.append(f"{outcome.retries} requests had to be sent again")
    if complaint := outcome.complaint():
        notes.append(complaint)
    return Judgement(outcome, scale, tuple(notes))


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name) or "_"
