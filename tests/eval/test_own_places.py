"""Question files of one's own have answers and reviews of their own; what keeps scores away is told first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_judge import fake_judge

from llava.eval.run.command import main
from llava.utils import UserError

EARLIER = "playground/data/eval/custom"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    (tmp_path / "my").mkdir()
    for name, text in (("first", "Is fire cold?"), ("second", "Is ice hot?")):
        (tmp_path / f"my/{name}.jsonl").write_text(json.dumps({"text": text, "answer": "no"}) + "\n")
    return tmp_path


def custom(name: str, server: str, *flags: str) -> None:
    main(["custom", "--base-url", server, "--model", "m", "--question-file", f"my/{name}.jsonl", *flags])


def test_each_question_file_has_answers_of_its_own_beside_it(own: Path) -> None:
    with fake_judge(lambda text, times: "no") as server:
        for name in ("first", "second", "first"):
            custom(name, server.base_url)
    assert len(server.requests) == 2  # the third run resumes the first
    for name in ("first", "second"):
        result = json.loads((own / f"my/answers/{name}/m.result.json").read_text())
        assert result["counts"]["answered"] == 1
    assert not (own / "playground").exists()


def test_answers_at_the_place_of_earlier_versions_are_resumed(own: Path) -> None:
    with fake_judge(lambda text, times: "no") as server:
        custom("first", server.base_url, "--answers", f"{EARLIER}/answers/m.jsonl")
        custom("first", server.base_url)
        assert len(server.requests) == 1 and not (own / "my/answers").exists()
        custom("second", server.base_url)  # they are not its own
    assert len(server.requests) == 2 and (own / "my/answers/second/m.jsonl").exists()


def test_a_folder_of_the_data_keeps_the_references_place(own: Path) -> None:
    (own / "my/first.jsonl").rename(own / "my/questions.jsonl")
    with fake_judge(lambda text, times: "no") as server:
        main(["custom", "--base-url", server.base_url, "--model", "m", "--data-dir", "my"])
    assert (own / "my/answers/m.result.json").exists()


def test_reviews_have_places_of_their_own_too(own: Path) -> None:
    with fake_judge(lambda text, times: "1.0") as server:
        judge = ["--metric", "judge", "--judge-model", "j", "--judge-base-url", server.base_url]
        for name in ("first", "second", "first"):
            custom(name, server.base_url, *judge)
        assert len(server.requests) == 4  # two answers, two reviews
        assert (own / "my/reviews/first/m.j.jsonl").exists() and (
            own / "my/reviews/second/m.j.jsonl"
        ).exists()
        (own / EARLIER / "reviews").mkdir(parents=True)
        (own / "my/reviews/first/m.j.jsonl").rename(own / EARLIER / "reviews/m.j.jsonl")
        custom("first", server.base_url, *judge)  # reviews of an earlier version count
        assert len(server.requests) == 4 and not (own / "my/reviews/first/m.j.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--by", "nope"], "has no 'nope' for --by"),
        (["--metric", "choice"], "has no 'choices'"),
        (["--metric", "judge", "--judge-model", "j", "--judge-timeout", "0"], "--judge-timeout is 0"),
        (["--metric", "judge", "--judge-model", "j", "--rule", "none.json"], "none.json"),
        (["--judge-model", "j"], "--judge-model: only --metric judge asks a judge, and it is exact"),
        (["--metric", "f1", "--reviews", "r"], "--reviews: only --metric judge"),
    ],
)
def test_what_would_keep_scores_away_is_told_before_a_model_is_asked(
    own: Path, flags: list[str], told: str
) -> None:
    with fake_judge(lambda text, times: "no") as server:
        with pytest.raises(UserError, match=told):
            custom("first", server.base_url, *flags)
        (own / "my/first.jsonl").write_text('{"text": "Is fire cold?"}\n')
        with pytest.raises(UserError, match="has no answer"):
            custom("first", server.base_url)
    assert not server.requests


def test_the_help_names_one_default_for_images(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["custom", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "by default beside the questions" in told and ". there)" not in told
