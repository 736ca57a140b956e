"""Two results side by side: paired numbers against scipy, flips, a page that markup cannot harm."""

import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from llava.eval.comparing.page import page_of
from llava.eval.comparing.pairs import compare, comparison_result, comparison_text
from llava.eval.comparing.statistics import clustered_error, compare_credits, mcnemar
from llava.eval.run.command import main
from llava.eval.run.running import score_file
from llava.eval.tasks.digits import Digits
from llava.utils import UserError


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (9, 3), (40, 41), (800, 700)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-6)


def test_without_groups_the_error_is_that_of_a_paired_t_test():
    generator = np.random.default_rng(0)
    one, two = generator.random(200), generator.random(200)
    found = compare_credits(one, two)
    assert found.difference == pytest.approx(100 * (two - one).mean())
    assert found.stderr == pytest.approx(100 * stats.sem(two - one))
    assert found.mcnemar is None
    assert found.low < found.difference < found.high
    assert (found.high - found.low) / found.stderr == pytest.approx(2 * 1.96, rel=0.1)


def test_questions_of_one_group_count_as_one():
    one, two = [0.0, 1.0] * 20, [1.0, 1.0] * 10 + [0.0, 1.0] * 10
    alone = compare_credits(one, two)
    tripled = compare_credits(one * 3, two * 3, list(range(40)) * 3)
    assert tripled.groups == 40 and tripled.n == 120
    assert tripled.stderr == pytest.approx(alone.stderr)
    assert compare_credits(one * 3, two * 3).stderr < alone.stderr / 1.5
    assert clustered_error(np.array([3.0]), np.array([4.0])) == 0.0


def test_flips_are_counted():
    found = compare_credits([0, 0, 1, 1], [1, 0, 0, 1])
    assert (found.gained, found.lost, found.difference, found.mcnemar) == (1, 1, 0.0, 1.0)


NASTY = '</pre><script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture
def two_results(data, tmp_path):
    """Two scored answers files: the second is worse in question 0 and better in 1."""
    paths = []
    for name, wrong in (("first", {1}), ("second", {0, 2})):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(
                json.dumps({"question_id": n, "text": NASTY if n in wrong else str(n + 1)}) + "\n"
                for n in range(12)
            )
        )
        score_file(Digits(), data, path, None)
        paths.append(path)
    return paths


def test_two_files_are_compared(two_results, tmp_path, capsys):
    output, html = tmp_path / "c.json", tmp_path / "pages" / "c.html"
    main(["compare", *map(str, two_results), "--output", str(output), "--html", str(html)])
    told = capsys.readouterr().out
    assert "first: 91.67 %, second: 83.33 %, over 12 questions" in told and "McNemar" in told
    found = json.loads(output.read_text())
    assert (found["gained"], found["lost"], found["flipped"]) == (1, 2, [0, 2, 1])
    page = html.read_text()
    assert page.count("<article>") == 3
    assert page.count("data:image/jpeg;base64,") == 3  # questions 0 and 1 have one and two images
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page
    known = [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "article",
        "figure",
        "img",
        "section",
        "dl",
        "dt",
        "dd",
        "pre",
    ]
    assert set(re.findall(r"<(\w+)", page)) <= set(known)
    assert "default-src 'none'" in page


def test_without_the_data_the_page_has_no_images(two_results, data):
    (data.root / "test.json").unlink()
    assert "the data of the task is not there" in page_of(compare(*two_results))


def test_a_page_shows_so_many(two_results):
    page = page_of(compare(*two_results), shown=1)
    assert page.count("<article>") == 2 and "1 more are not shown" in page


def test_what_cannot_be_compared_is_one_sentence(two_results, tmp_path):
    with pytest.raises(UserError, match="score the answers first"):
        compare(two_results[0], tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        compare(two_results[0], tmp_path)
    result = tmp_path / "second.result.json"
    changed = json.loads(result.read_text()) | {"task": "pope"}
    result.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="task is digits in .* and pope in"):
        compare(*two_results)
    result.write_text("[]")
    with pytest.raises(UserError, match="no result of llava.eval"):
        compare(*two_results)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"reviews": "a"}, {"reviews": "b"}, None),
        ({"judge-retries": "4", "judge-base-url": "http://x"}, {"judge-retries": "9"}, None),
        ({"judge": ["gpt-a"]}, {"judge": ["gpt-a"], "judge-model": "gpt"}, None),
        ({"judge": ["gpt-a"]}, {"judge": ["gpt-b"]}, "judge is .'gpt-a'. in .* and .'gpt-b'. in"),
        ({"judge-model": "gpt-a"}, {"judge-model": "gpt-b"}, "judge is gpt-a in .* and gpt-b in"),
        ({"rule": "a.json"}, {"rule": "b.json"}, "options is .*a.json"),
    ],
)
def test_judged_results_are_compared_whatever_the_way_of_asking(
    two_results, tmp_path, first, second, message
):
    """Where reviews lie and how a server is asked does not matter; who judged and by which rule does."""
    for path, options in zip(two_results, (first, second), strict=True):
        result = path.with_name(f"{path.stem}.result.json")
        content = json.loads(result.read_text()) | {"task": "llava_bench"}
        if "judge" in options:
            content["judge"] = {"models": options["judge"]}
        content["options"] = {key: value for key, value in options.items() if key != "judge"}
        result.write_text(json.dumps(content))
    if message is None:
        assert len(compare(*two_results).flips) == 3
    else:
        with pytest.raises(UserError, match=message):
            compare(*two_results)


def test_a_split_that_is_not_named_is_told_so(two_results):
    first, second = two_results
    result = second.with_name("second.result.json")
    result.write_text(json.dumps(json.loads(result.read_text()) | {"split": "val"}))
    with pytest.raises(UserError, match="split is not named in .* and val in "):
        compare(first, second)


def test_results_of_other_data_are_compared_and_told(two_results):
    result = two_results[1].with_name("second.result.json")
    content = json.loads(result.read_text())
    content["data"]["question-file"]["sha256"] = "0" * 64
    result.write_text(json.dumps(content))
    found = compare(*two_results)
    assert "the two were scored with other versions of: question-file" in comparison_text(found)
    assert comparison_result(found)["other_data"] == ["question-file"]


@pytest.mark.slow
def test_a_browser_runs_nothing_of_the_page(two_results, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "c.html").write_text(page_of(compare(*two_results)))
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        dialogs = []
        page.on("dialog", lambda one: dialogs.append(one.message) or one.dismiss())
        page.goto(f"file://{tmp_path}/c.html")
        assert page.locator("article").count() == 3 and not dialogs
        assert page.locator("article img").first.evaluate("one => one.naturalWidth") > 0
        assert NASTY in page.locator("dd.wrong pre").first.inner_text()
        browser.close()


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        (None, "None"),
        ("98", "'98'"),
        ({"digits": 98}, "{'digits': 98}"),
        ([98], "98"),
        ([{"name": "all"}], "{'name': 'all'}"),
        ([{"name": "all", "value": "98", "kind": "exact", "n": 12}], "'value': '98'"),
    ],
)
def test_scores_that_are_none_are_told(two_results, scores, found):
    result = two_results[1].with_name("second.result.json")
    content = json.loads(result.read_text())
    result.write_text(json.dumps(content | {"scores": scores}))
    with pytest.raises(UserError) as told:
        compare(*two_results)
    assert str(result) in str(told.value) and found in str(told.value)
    assert "expected" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("field", [{"credit": "1"}, {"expected": 4}, {"credit": float("nan")}])
def test_a_graded_line_that_no_scorer_writes_is_told(two_results, field):
    graded = two_results[1].with_name("second.graded.jsonl")
    first, *others = graded.read_text().splitlines()
    graded.write_text("\n".join([json.dumps(json.loads(first) | field), *others]))
    with pytest.raises(UserError, match=r"second\.graded\.jsonl, line 1: .*expected"):
        compare(*two_results)
