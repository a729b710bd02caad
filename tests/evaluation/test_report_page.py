"""The page: complete in itself, well formed, escaped, small, and it opens with the verdict."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipestill.errors import UserError
from pipestill.evaluation.charts import ArmPoint, Curve, accuracy_chart, curves_chart, scatter_chart
from pipestill.evaluation.report import write_report
from pipestill.evaluation.row_views import clip, rows_to_explain, side_by_side, won_and_lost
from pipestill.evaluation.svg import linear_ticks, log_ticks, tag
from tests.evaluation import synthetic

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' & {{ 7*7 }}"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags and text; notes tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open, self.broken = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.broken.append(name)

    def handle_data(self, text):
        self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _write(folder: Path, items=None, **changed) -> tuple[str, Page, dict]:
    arguments = synthetic.write_run(folder, items or synthetic.predictions(), **changed)
    write_report(**arguments)
    html = Path(arguments["page_path"]).read_text(encoding="utf-8")
    return html, Page(html), json.loads(Path(arguments["summary_path"]).read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("page"))


def test_the_verdict_is_returned_and_written(tmp_path):
    arguments = synthetic.write_run(tmp_path, synthetic.predictions())
    assert write_report(**arguments) == "better"
    summary = json.loads(Path(arguments["summary_path"]).read_text(encoding="utf-8"))
    assert summary["verdict"] == "better"


def test_the_page_opens_with_the_verdict(written):
    html, page, summary = written
    assert summary["verdict_sentence"] in page.text
    assert html.index("verdict better") < html.index("<h2>")
    assert "Better" in page.text


def test_every_tag_is_closed_in_order(written):
    _, page, _ = written
    assert page.broken == []
    assert page.open == []


def test_it_loads_nothing_and_runs_nothing(written):
    html, page, _ = written
    names = {name for name, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "img", "form"}
    for name, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "action"} & attributes.keys(), name
        assert not [key for key in attributes if key.startswith("on")], name
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert len(html.encode()) < 1_000_000


def test_everything_promised_is_on_the_page(written):
    _, page, summary = written
    for words in (
        "Accuracy", "Paired comparisons", "Quality against cost", "Validation loss", "Data",
        "Labels and rationales from the teacher", "Rationales side by side", "Rows DSS won",
        "Rows DSS lost", "To reproduce", "Rows set aside: the first 10 of 12", "train.jsonl",
        "171 of 200", "310 made, 190 answered from the journal", "Teacher, 5 shots", "sha256",
        "dropped: leads to another answer",
    ):  # fmt: skip
        assert words in page.text, words
    assert f"{summary['arms']['dss']['accuracy'] * 100:.1f} %" in page.text


def test_charts_tell_a_screen_reader_what_they_show(written):
    _, page, _ = written
    charts = [
        attributes for name, attributes in page.tags if name == "svg" and "role" in attributes
    ]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(charts) == 10  # five charts, wide and narrow
    assert len(ids) == len(set(ids))
    for chart in charts:
        assert chart["role"] == "img"
        assert set(chart["aria-labelledby"].split()) <= set(ids)


def test_no_text_of_the_data_becomes_markup(tmp_path):
    items = [
        dataclasses.replace(
            item, id=item.id + EVIL, input_text=EVIL, output_text=EVIL, rationale=EVIL, gold=EVIL,
            gold_rationale=EVIL, arm=item.arm if item.arm != "shuffled" else EVIL,
        )
        for item in synthetic.predictions(rows=60)
    ]  # fmt: skip
    reject = dataclasses.replace(
        synthetic.rejects()[0], file=EVIL, field=EVIL, reason=EVIL, found=EVIL
    )
    rows = [dataclasses.replace(synthetic.training_rows(1)[0], rationale_status=EVIL)]
    evaluation = synthetic.evaluation_metrics(items)
    evaluation["config"] = {EVIL: EVIL, "teacher": {EVIL: EVIL}}
    evaluation["arms"]["teacher_9_shot"] = {"error": EVIL}
    training = [{**synthetic.training_metrics()[0], "run": f"{EVIL}:0"}]
    html, page, _ = _write(
        tmp_path, items, rejects=[reject], rows=rows, evaluation=evaluation, training=training,
        title=EVIL,
    )  # fmt: skip
    assert not {name for name, _ in page.tags} & {"script", "img"}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "<script" not in html
    assert "{{ 7*7 }}" in page.text
    assert (page.broken, page.open) == ([], [])


def test_long_texts_are_cut_and_the_page_stays_small(tmp_path):
    long = "word " * 50_000
    items = [
        dataclasses.replace(item, input_text=long, rationale=item.rationale and long)
        for item in synthetic.predictions(rows=40)
    ]
    html, _, _ = _write(tmp_path, items)
    assert len(html.encode()) < 1_000_000


def test_an_undecided_run_says_so(tmp_path):
    equal = {"dss": 0.7, "label_only": 0.7, "base": 0.3}
    html, page, summary = _write(tmp_path, synthetic.predictions(accuracy=equal))
    assert summary["verdict"] == "cannot_tell"
    assert "Cannot tell whether DSS differs" in page.text
    assert "verdict cannot_tell" in html


def test_a_run_with_one_arm_and_nothing_else_still_makes_a_page(tmp_path):
    items = [i for i in synthetic.predictions(rows=5) if i.arm == "base"]
    html, page, _ = _write(
        tmp_path, items, rows=[], rejects=[], evaluation={}, data={}, labels={}, training=[]
    )
    assert "does not hold both arms" in page.text
    assert "No row was set aside." in page.text
    assert (page.broken, page.open) == ([], [])
    assert html


def test_a_surrogate_in_a_row_does_not_stop_the_page(tmp_path):
    items = synthetic.predictions(rows=30)
    arguments = synthetic.write_run(tmp_path, items)
    path = Path(arguments["predictions_path"])
    path.write_text(path.read_text().replace("unopened", "\\ud800pened"))
    assert write_report(**arguments)


def test_a_broken_metrics_file_is_one_line_to_the_user(tmp_path):
    arguments = synthetic.write_run(tmp_path, synthetic.predictions(rows=10))
    Path(arguments["data_metrics_path"]).write_text("not json")
    with pytest.raises(UserError, match=r"METRICS_UNREADABLE.*data\.json"):
        write_report(**arguments)


def test_rows_to_explain_come_evenly_from_the_four_cases():
    items = synthetic.predictions(rows=200)
    first, second = (
        {i.id: i for i in items if (i.arm, i.seed) == (arm, 0)} for arm in ("dss", "label_only")
    )
    chosen = rows_to_explain(first, second, 20)
    cases = [(first[row].correct, second[row].correct) for row in chosen]
    assert len(set(chosen)) == 20
    assert [cases.count(case) for case in sorted(set(cases))] == [5, 5, 5, 5]
    assert chosen == rows_to_explain(dict(reversed(first.items())), second, 20)
    assert len(rows_to_explain(dict(list(first.items())[:3]), second, 20)) == 3


def test_the_samples_hold_right_and_wrong_answers_and_won_and_lost_rows():
    items = synthetic.predictions(rows=400)
    shown = side_by_side(items)
    assert {row["columns"][2]["right"] for row in shown} == {True, False}
    assert 4 <= len(shown) <= 8
    won, lost = won_and_lost(items)
    assert len(won) == len(lost) == 5
    first, second = (sum(right for _, right in c["answers"]) for c in won[0]["columns"])
    assert first > second


def test_clip_keeps_short_texts_and_marks_cut_ones():
    assert (clip(" a "), clip(None), clip("abcdef", 4)) == ("a", "", "abc…")


def test_ticks_enclose_the_values():
    assert linear_ticks(0.33, 0.91) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks(0.5, 0.5)[0] <= 0.5 <= linear_ticks(0.5, 0.5)[-1]
    for low, high in ((38, 471), (9.4, 9.4), (1, 1), (0.3, 20_000)):
        ticks = log_ticks(low, high)
        assert ticks[0] <= low * 1.001
        assert ticks[-1] >= high * 0.999
        assert len(ticks) >= 2


@pytest.mark.parametrize("width", [350.0, 960.0])
def test_charts_survive_extreme_values(width):
    point = ArmPoint(arm="dss", accuracy=1.0, low=1.0, high=1.0, seeds=(1.0, 1.0), x=5.0)
    nothing = dataclasses.replace(point, arm="base", accuracy=0.0, low=0.0, high=0.0, seeds=(0.0,))
    for points in ([point], [nothing], [point, nothing], [point] * 12):
        for chart in (accuracy_chart(points, width), scatter_chart(points, "tokens", width)):
            assert "nan" not in chart
            assert Page(chart).open == []
    assert "nan" not in curves_chart([Curve(arm="dss", points=((0.0, 0.0),))], "Loss", 1e-6, width)


def test_tags_escape_text_and_attributes():
    assert tag("text", "<b>", class_='"x"') == '<text class="&#34;x&#34;">&lt;b&gt;</text>'
