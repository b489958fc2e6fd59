"""The report: one page without any outside reference, from whatever the run folder holds."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib._pylab_helpers import Gcf
from rich.console import Console

from lampseg.errors import UserError
from lampseg.evaluation import Comparison, ComparisonRow, Evaluation, plan_lines, summary_paragraph, write_report
from lampseg.evaluation.report.figures import training_curves
from lampseg.evaluation.report.plan_check import PlanCheck
from lampseg.evaluation.report.run_folder import read_run
from lampseg.partition import plans_to_json
from tests.unit.fake_run import MIB, NAMES, comparison, make_plan, make_run, slice_view, step_line, validation_line


class Page(HTMLParser):
    """What a browser would fetch, and the text it would show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fetching = ("src", "href", "srcset", "data", "poster", "action", "background", "style")
        if tag == "a":
            self.links.append(dict(attrs)["href"] or "")
        if tag == "meta" and dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"] or ""
        self.references += [value or "" for name, value in attrs if name in fetching]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("script", "style"):
            if self.tags[-1] == "script" and data.strip():
                self.scripts.append(data)
            return
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.tags.append(f"/{tag}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything a page can hold; for tests that only read it."""
    folder = make_run(tmp_path_factory.mktemp("whole") / "run")
    return write_report(folder, comparison=comparison(), slices=[slice_view()])


def test_page_is_self_contained_and_complete(report: Path) -> None:
    path, page = report, Page(report)
    assert path.name == "report.html"
    assert len(page.references) == 8 + len(
        page.links
    )  # scatter, boxes, curves, memory and timetable of two plans, slices
    pictures = [r for r in page.references if r not in page.links]
    assert all(re.match(r"data:image/(svg\+xml|png);base64,[A-Za-z0-9+/=]+$", r) for r in pictures)
    assert page.links == [f"#section-{i}" for i in range(1, 7 + 1)]
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    assert "http:" not in path.read_text()
    assert "https:" not in path.read_text()
    assert "url(" not in path.read_text()
    assert "@import" not in path.read_text()
    for section in ("Results", "Training", "Split over devices", "Slices", "Configuration", "Environment"):
        assert section in page.words
    assert not [p for p in report.parent.iterdir() if p.name.startswith(".")]


def test_policy_allows_the_page_s_own_scripts_and_no_others(report: Path) -> None:
    page = Page(report)
    allowed = re.findall(r"'sha256-([^']*)'", page.policy)
    found = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts]
    assert allowed == found
    assert len(found) == 1, "without a viewer only the tables have a script"
    assert "default-src 'none'" in page.policy
    assert "unsafe-inline" not in page.policy.split("script-src")[1]


def test_pictures_refer_to_nothing_outside_themselves(report: Path) -> None:
    for uri in (r for r in Page(report).references if r.startswith("data:")):
        head, content = uri.split(",", 1)
        data = base64.b64decode(content)
        if "png" in head:
            assert data.startswith(b"\x89PNG")
            continue
        links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', data.decode("utf-8"))
        assert links
        assert all((a or b).startswith("#") for a, b in links)


def test_names_are_escaped(report: Path) -> None:
    html = report.read_text()
    assert "<script>alert" not in html
    assert "<b>&" not in html
    assert "Parotid_<L>" not in html
    text = Page(report).text
    assert "<script>alert(1)</script>" in text
    assert "Parotid_<L>" in text
    assert "case <a>" in text


def test_the_same_run_gives_the_same_page_and_no_global_figures(report: Path) -> None:
    first = report.read_bytes()
    assert write_report(report.parent, comparison=comparison(), slices=[slice_view()]).read_bytes() == first
    assert not Gcf.figs


def test_summary_says_what_was_done_and_found(run: Path, report: Path) -> None:
    text = summary_paragraph(read_run(run), comparison=comparison())
    assert text == (
        "unet (filters 8, 3.0 million parameters) was trained on 2 devices for 30 optimizer steps in 2 of 3 "
        "curriculum stages (32 x 32 x 32, then whole volumes); the steps took 37 s in all. "
        "The selected model is that of step 25, with a mean validation Dice of 0.620. "
        "Average Dice on 2 cases, and time per volume: whole volume: 0.683 in 0.5 s; "
        "_sliding window $32$: 0.567 in 4.25 s."
    )
    assert text in Page(report).text


def test_evaluation_beside_the_run_is_shown(run: Path) -> None:
    evaluation = comparison().rows[0].evaluation
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text(evaluation.to_json())
    text = Page(write_report(run)).text
    assert "Its average Dice on 2 evaluated cases is 0.683." in text
    assert "0.850 0.500 0.700 0.683" in text  # the row of means


@pytest.mark.parametrize(
    "kept",
    [
        {"config.yaml"},
        {"metrics.jsonl"},
        {"plan.json"},
        {"config.yaml", "metrics.jsonl"},
        {"config.yaml", "plan.json", "environment.json"},
    ],
)
def test_missing_pieces_are_left_out(run: Path, kept: set[str]) -> None:
    for path in run.iterdir():
        if path.name not in kept:
            path.unlink()
    page = Page(write_report(run))
    assert ("Configuration" in page.words) == ("config.yaml" in kept)
    assert ("Split over devices" in page.words) == ("plan.json" in kept)
    assert ("Training" in page.words) == ("metrics.jsonl" in kept)
    assert ("has been recorded yet" in page.text) == ("metrics.jsonl" not in kept)


def test_no_validation_yet(run: Path) -> None:
    (run / "metrics.jsonl").write_text(step_line(1, 0) + "\n")
    (run / "best.json").unlink()
    page = Page(write_report(run))
    assert "No validation has been recorded yet" in page.text
    assert "Validation" not in page.words
    assert len(training_curves(read_run(run)).axes) == 1


def test_validation_without_any_score(run: Path) -> None:
    (run / "metrics.jsonl").write_text(step_line(1, 0) + "\n" + validation_line(1, 0, None) + "\n")
    (run / "best.json").unlink()
    assert read_run(run).best is None
    assert "No validation" in Page(write_report(run)).text


def test_unfinished_last_line_is_ignored_and_others_are_counted(run: Path) -> None:
    assert (len(read_run(run).steps), read_run(run).unreadable_lines) == (30, 0)
    with (run / "metrics.jsonl").open("a") as file:  # resumed after the kill: the broken line is now in the middle
        file.write("\n" + step_line(30, 1, loss=7.0) + "\n" + step_line(31, 1) + "\n")
    resumed = read_run(run)
    assert [s.step for s in resumed.steps] == list(range(1, 32))
    assert resumed.steps[29].loss == 7.0  # the step done again counts
    assert resumed.unreadable_lines == 1
    assert "1 unreadable line of metrics.jsonl" in Page(write_report(run)).text


def test_best_is_that_of_the_file_else_the_highest(run: Path) -> None:
    (run / "best.json").write_text(json.dumps({"step": 20, "validation": 0.4}))
    assert read_run(run).best.step == 20
    (run / "best.json").unlink()
    assert read_run(run).best.step == 25


def test_totals_of_a_curriculum_stage(run: Path) -> None:
    totals = read_run(run).totals(0)
    assert (totals.steps, totals.timed, totals.seconds_per_step) == (20, 17, 0.5)
    assert totals.peak_bytes == (120 * MIB, 90 * MIB)
    assert totals.tensor_bytes == (98 * MIB, 82 * MIB)
    assert totals.busy_seconds == (0.3, 0.1)
    assert totals.stage_seconds == ({0: (0.1, 0.2)}, {1: (0.04, 0.06)})
    nothing = read_run(run).totals(7)
    assert (nothing.steps, nothing.seconds_per_step, nothing.busy_seconds, nothing.stage_seconds) == (0, None, (), ())


def test_few_steps_are_all_timed_and_on_cuda_the_first_are_not(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(step_line(i, 0) + "\n" for i in (1, 2)))
    assert (read_run(run).totals(0).timed, read_run(run).totals(0).seconds_per_step) == (2, 3.0)
    assert "slowed by counting" in plan_lines(run)[0]
    cuda = [{"tensor_peak_bytes": [i, i], "seconds": 9.0 if i < 4 else 1.0, "busy_seconds": []} for i in range(1, 7)]
    lines = [step_line(i, 0, **fields) for i, fields in enumerate(cuda, start=1)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    totals = read_run(run).totals(0)
    assert (totals.timed, totals.seconds_per_step, totals.tensor_bytes) == (3, 1.0, (6, 6))
    assert not totals.slowed


def test_the_plan_is_shown_beside_what_was_measured(report: Path) -> None:
    text = Page(report).text
    assert "2 devices, 1f1b, 2 micro-batches, recompute none" in text
    # parts of device 0, its predicted and measured peak, by how much they differ, libraries, what it has
    assert "0 6 MiB 6 MiB 7 MiB 70 MiB 4 MiB 6 MiB 99 MiB 98 MiB -1.0 % 10 MiB -" in text
    assert "0 0.33 s 0.3 s -9.1 % 55 % 75 %" in text
    assert "1: up.0 ... tail 1 1,500,000 1 x 20 MiB none 0.09 s 0.04 s 0.18 s 0.06 s" in text
    assert "1 device <i> 0.8 s 300 MiB twice as slow" in text
    assert "details" not in Page(report).tags


def test_many_alternatives_are_folded(run: Path) -> None:
    plan = make_plan((8, 8, 8))
    (run / "plan.json").write_text(plans_to_json([replace(plan, alternatives=plan.alternatives * 9)]))
    page = Page(write_report(run))
    assert "9 other ways were considered" in page.words
    assert page.tags.count("details") == 1


def test_of_replicas_the_worst_counts(run: Path) -> None:
    plan = make_plan((32, 32, 32), replicas=2)
    ranks = {
        "tensor_peak_bytes": [5, 6, 7, 4],
        "busy_seconds": [0.1, 0.2, 0.3, 0.1],
        "stage_seconds": [{"0": [1, 2]}, {"1": [3, 4]}, {"0": [2, 1]}, {"1": [2, 5]}],
    }
    (run / "metrics.jsonl").write_text(step_line(1, 0, **ranks) + "\n")
    check = PlanCheck(plan, read_run(run).totals(0))
    assert check.tensor_bytes == (7, 6)
    assert check.busy_seconds == (0.3, 0.2)
    assert check.stage_seconds == ((2, 1), (3, 4))
    assert check.predicted_seconds(0) == pytest.approx((2 * 0.055, 4 * 0.055)), "two micro-batches of a replica's"


def test_ranks_that_are_not_the_plan_s_are_not_shown(run: Path) -> None:
    """A run that was resumed on other devices has a new plan, and steps of the old one."""
    (run / "metrics.jsonl").write_text(step_line(1, 0, tensor_peak_bytes=[1, 2, 3], stage_seconds=[{"0": [1, 1]}]))
    check = PlanCheck(make_plan((32, 32, 32)), read_run(run).totals(0))
    assert check.tensor_bytes == (None, None)
    assert check.stage_seconds == (None, None)
    assert "not measured" in check.line()


def test_steps_of_another_plan_do_not_count(run: Path) -> None:
    """A run that ran out of memory goes on by another plan, on as many devices."""
    mine, plans = make_plan((32, 32, 32)), run / "plan.json"
    other = replace(mine.choices, cuts=(40,)).fingerprint
    plans.write_text(plans_to_json([mine]))
    lines = [step_line(i, 0, plan=other, tensor_peak_bytes=[9, 9], seconds=9.0) for i in (1, 2)]
    lines += [step_line(i, 0, plan=mine.choices.fingerprint, tensor_peak_bytes=[5, 6], seconds=1.0) for i in (3, 4)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    measured = read_run(run).measured(0)
    assert (measured.steps, measured.tensor_bytes, measured.seconds_per_step) == (2, (5, 6), 1.0)
    assert read_run(run).totals(0).steps == 4


def test_each_curriculum_stage_in_one_line(run: Path) -> None:
    assert plan_lines(run) == [
        "curriculum stage 1: a step 0.4 s predicted, 0.5 s measured (+25.0 %); "
        "tensors of the fullest device 99 MiB predicted, 98 MiB measured (-1.0 %)",
        "curriculum stage 2: a step 0.4 s predicted, 1.5 s measured (+275.0 %); "
        "tensors of the fullest device 99 MiB predicted, 118 MiB measured (+19.2 %)",
    ]


def test_a_plan_of_another_version_is_said_and_the_rest_is_shown(run: Path) -> None:
    (run / "plan.json").write_text('{"version": 1, "plans": [{"stages": [{}]}]}')
    text = Page(write_report(run)).text
    assert "plan.json has version 1, this program reads version 2" in text
    assert "Configuration" in text
    assert plan_lines(run) == []


def test_not_a_run_folder_and_broken_files_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: not a run folder"):
        write_report(tmp_path / "nowhere")
    (run / "plan.json").write_text('{"version": 2, "plans": [{"version": 2, "choices": {}}]}')
    with pytest.raises(UserError, match=r"plan\.json: not a plan file"):
        write_report(run)
    (run / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: not valid JSON"):
        write_report(run)
    (run / "plan.json").unlink()
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: not valid YAML"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_comparison_as_table_csv_and_json(tmp_path: Path) -> None:
    value = comparison()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(value.table())
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["│", "Chiasm", "│", "0.500", "│", "0.600", "│"] in lines
    assert ["│", "time", "per", "volume", "│", "0.5", "s", "│", "4.25", "s", "│"] in lines
    assert value.best() == {(0, 1), (1, 2), (2, 1), (3, 1)}
    as_json, as_csv = value.write(tmp_path / "out")
    assert as_csv.read_text().splitlines() == [
        "method,BrainStem,Chiasm,Parotid_<L>,average,seconds_per_volume",
        "whole volume,0.850000,0.500000,0.700000,0.683333,0.500000",
        "_sliding window $32$,0.600000,0.600000,0.500000,0.566667,4.250000",
    ]
    tree = json.loads(as_json.read_text())
    assert tree["rows"][1]["seconds_per_volume"] == 4.25
    assert Evaluation.from_json(json.dumps(tree["rows"][0]["evaluation"])) == value.rows[0].evaluation


def test_comparison_of_different_cases_warns() -> None:
    one = Evaluation.from_cases({"a": (0.9, 0.5, 0.8)}, class_names=NAMES)
    mixed = Comparison((*comparison().rows, ComparisonRow("other", one, 1.0)))
    assert "do not compare" in mixed.note()
    assert "do not compare" not in comparison().note()
