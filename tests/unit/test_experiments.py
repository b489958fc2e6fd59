"""The paper's experiments: 36 rows written once, the paper's figures beside ours, and its schedules simulated."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lampseg.commands.reproduce import check_fits, mean_seconds, predict_options
from lampseg.data import Case, Dataset, read_dataset, write_phantom
from lampseg.errors import UserError
from lampseg.evaluation.scores import Evaluation
from lampseg.experiments import STUDIES, Row, study
from lampseg.experiments.figures import dice_against_seconds
from lampseg.experiments.paper_tables import paper_dice, paper_seconds
from lampseg.experiments.results import Cell, Result, filled_tables
from lampseg.experiments.scale import SCALES, at_scale
from lampseg.experiments.schedules import CONVENTIONAL, PARALLEL, Throughput, drawings, schedule_picture
from lampseg.experiments.selected_on_test import best_by_organ
from lampseg.experiments.standin import LIVER, write_standin
from lampseg.experiments.trends import trends


def rows(name: str) -> list[Row]:
    return [row for experiment in study(name).experiments for row in experiment.rows]


def test_there_are_36_rows_with_the_papers_settings() -> None:
    assert len(rows("han")) + len(rows("liver")) == 36
    for name in STUDIES:
        for experiment in study(name).experiments:
            config = experiment.config(root="DATA", devices=8, seed=0, overrides={})
            assert (config.network.name, config.network.filters) == (experiment.network, experiment.filters)
            assert [stage.batch for stage in config.curriculum] == [16, 4, 1]
            assert [stage.epochs for stage in config.curriculum] == [4800, 1200, 300]
            assert [stage.lr for stage in config.curriculum] == [1e-3] * 3
            assert [stage.patch for stage in config.curriculum] == [64, 128, "whole" if name == "han" else 192]
            assert config.optimizer.name == "rmsprop"
    liver = study("liver").experiments[0].config(root="DATA", devices=8, seed=0, overrides={})
    assert (liver.data.spacing, liver.data.window) == ((1, 1, 1), (-21, 89))


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_has_its_figures_in_the_paper(name: str) -> None:
    dice, seconds = paper_dice(study(name)), paper_seconds(study(name))
    for row in rows(name):
        assert {column.lower() for column in study(name).organs.values()} < set(dice[row.key])
        assert row.seconds_key in seconds
    assert {row.key for row in rows(name)} == {key for key in dice if key[1]}
    assert {row.seconds_key for row in rows(name)} == set(seconds)


def test_the_papers_figures_are_read_from_the_right_cells() -> None:
    assert paper_dice(study("han"))["SEU-Net-128", "whole"]["ch"] == 51.85
    assert paper_dice(study("liver"))["U-Net-64", "192"]["tumor"] == 45.29
    found = paper_seconds(study("han"))["SEU-Net-128", "64"]
    assert (found.mean, found.deviation, found.devices) == (4.73, 0.69, "4x32G")


def test_one_experiment_is_chosen_by_name() -> None:
    assert [each.paper_name for each in study("han").chosen(("seunet-128",))] == ["SEU-Net-128"]
    assert len(study("han").chosen(())) == 6
    with pytest.raises(UserError, match=r"--only: 'seunet-127' is no experiment of han; there are unet-32"):
        study("han").chosen(("seunet-127",))


@pytest.mark.parametrize("scale", ["tiny", "smoke"])
@pytest.mark.parametrize("name", STUDIES)
def test_smaller_scales_keep_the_papers_names(name: str, scale: str) -> None:
    small = at_scale(study(name), SCALES[scale])
    kept = [row for experiment in small.experiments for row in experiment.rows]
    assert [(row.key, row.seconds_key) for row in kept] == [(row.key, row.seconds_key) for row in rows(name)]
    config = small.experiments[2].config(root="DATA", devices=2, seed=0, overrides={"data": {"cache": "C"}})
    assert config.network.filters == SCALES[scale].filters[128]  # type: ignore[union-attr]
    assert all(stage.epochs is None and stage.steps for stage in config.curriculum)
    assert config.data.cache == Path("C")
    assert config.data.validation == 0.1, "an override of one field leaves its neighbours"


def test_how_the_test_images_are_segmented() -> None:
    first, _, third = (row for row in rows("liver") if row.experiment.name == "unet-32")
    assert predict_options(first, first.input.window).window == (64, 64, 64)
    assert predict_options(first, first.input.window).overlap == 0.0
    assert predict_options(third, third.input.timed).window == (256, 256, 256)
    assert predict_options(third, third.input.timed).checkpoint == "stage-3-best"
    whole = next(row for row in rows("han") if row.input.name == "whole")
    assert predict_options(whole, whole.input.window).window is None


def test_the_image_that_warms_up_is_not_timed() -> None:
    assert mean_seconds([[9.0, 1.0, 3.0], [5.0]]) == (2.0, 5.0)
    assert mean_seconds([]) == ()


def evaluation(*dice: float | None) -> Evaluation:
    classes = ("background", *study("liver").organs)
    return Evaluation.from_cases({"a": dice, "b": dice}, class_names=classes)


def test_each_cell_holds_the_papers_figure_ours_and_the_difference(tmp_path: Path) -> None:
    row = next(row for row in rows("liver") if row.name == "unet-32/192")
    dice, seconds = filled_tables(study("liver"), [Result(row, evaluation(0.9, None), (1.0, 2.0, 3.0))])
    cells = dict(zip(dice.columns, dict(dice.rows)["U-Net-32 (192^3)"]))
    assert cells["liver"] == Cell(82.83, pytest.approx(90.0))
    assert cells["liver"].text() == "82.83 | 90.00 (+7.17)"
    assert cells["tumor"].text() == "51.57 | -"
    assert cells["average"].text() == "67.20 | 90.00 (+22.80)"
    assert dict(dice.rows)["U-Net-32 (64^3)"][0].text() == "4.76 | -"
    assert dict(seconds.rows)["U-Net-32 (256^3)"][0].text() == "1.52 | 2.00±1.00 (+0.48)"
    found = {line["model (input)"]: line for line in csv.DictReader(dice.to_csv().splitlines())}
    assert float(found["U-Net-32 (192^3)"]["liver difference"]) == pytest.approx(7.17)
    assert found["U-Net-32 (64^3)"]["liver ours"] == ""


def test_anatomynet_stands_in_its_table() -> None:
    table = filled_tables(study("han"), [])[1]
    assert dict(table.rows)["AnatomyNet"][0].text() == "86.65 | -"
    assert [table.name for table in filled_tables(study("han"), [])] == ["table1", "table2", "table3"]


def test_trends_are_said_as_they_are() -> None:
    up, down = evaluation(0.5, 0.7), evaluation(0.4, 0.4)
    one, two, three = (row for row in rows("liver") if row.experiment.name == "unet-32")
    other = next(row for row in rows("liver") if row.name == "unet-64/64")
    lines = trends([Result(one, down), Result(two, up), Result(three, down), Result(other, up)])
    assert [line.partition(" From")[0] for line in lines] == [
        "U-Net-32, larger inputs: average Dice does not rise (64 40.00 %, 128 60.00 %, 192 40.00 %).",
        "input 64, larger networks: average Dice rises at every step (U-Net-32 40.00 %, U-Net-64 60.00 %).",
    ]
    assert "From the first to the last: +0.00 points" in lines[0]
    assert "From the first to the last: +20.00 points" in lines[1]
    assert lines[1].endswith("p = 0.5 (Wilcoxon, 2 cases).")
    (line,) = trends([Result(one, down), Result(two, evaluation(0.3, 0.3)), Result(three, up)])
    assert "is higher at the end, but does not rise at every step" in line
    assert trends([Result(one, down)]) == []


def test_selection_on_the_test_set_belongs_to_no_single_model() -> None:
    names = ("background", "liver", "cancer")
    first = Evaluation.from_cases({"a": (0.9, 0.1), "b": (0.7, 0.3)}, class_names=names)
    second = Evaluation.from_cases({"a": (0.5, 0.6), "b": (0.5, None)}, class_names=names)
    best = best_by_organ([first, second])
    assert best.by_organ() == {"liver": pytest.approx(0.8), "cancer": pytest.approx(0.6)}
    assert [case.dice for case in best.cases] == [(0.9, 0.6), (0.7, None)]
    assert best.average > max(first.average, second.average)  # type: ignore[operator, type-var]


def test_the_papers_throughputs_come_out_of_the_simulation() -> None:
    """t/2 and 3t/4 batches in a device time of t, under the assumptions that the module states."""
    assert 1 / CONVENTIONAL.interval == pytest.approx(1 / 2)
    assert 1 / PARALLEL.interval == pytest.approx(3 / 4)
    assert 1 / Throughput("gpipe", 4, (1.0,) * 4).interval == pytest.approx(1), "four devices"
    assert 1 / Throughput("gpipe", 2, (2.0,) * 2).interval == pytest.approx(1 / 2), "two devices gain nothing"


def test_the_drawings_of_schedules() -> None:
    one, two, *_ = drawings()
    assert one.table.bubble == pytest.approx(2 / 3), "one piece: a device works a third of the time"
    assert two.table.bubble < one.table.bubble
    for drawing in drawings():
        assert len(schedule_picture(drawing).axes[0].get_yticks()) == 3


def test_figure_1_draws_every_row_that_is_done() -> None:
    chosen = study("liver")
    done = [Result(row, evaluation(0.5, 0.5), (1.0,)) for row in rows("liver")[:4]]
    paper, ours = dice_against_seconds(chosen, [*done, Result(rows("liver")[5])]).axes
    assert len(paper.lines) == 18
    assert len(ours.lines) == 4


def test_the_phantom_stands_for_the_liver(tmp_path: Path) -> None:
    plain = write_phantom(tmp_path / "plain", cases=3, test=1, seed=3)
    dataset = write_standin("liver", tmp_path / "liver", cases=3, test=1, seed=3)
    assert dataset.classes == ("background", "liver", "cancer")
    for before, after in zip((*plain.training, *plain.test), (*dataset.training, *dataset.test), strict=True):
        assert before.label is not None
        assert after.label is not None
        old, new = (np.asarray(nib.load(path).dataobj) for path in (before.label, after.label))
        for number, organ in enumerate(LIVER, start=1):
            np.testing.assert_array_equal(new == number, old == plain.classes.index(organ))
    check_fits(study("liver"), dataset)
    again = write_standin("liver", tmp_path / "liver", cases=3, test=1, seed=3)
    assert again == read_dataset(tmp_path / "liver") == dataset


def test_other_data_are_refused() -> None:
    case = Case("a", (Path("a"),), Path("a"), None)
    known = Dataset(Path("DATA"), "Other", ("background", "liver", "spleen"), (case,), (case,))
    with pytest.raises(UserError, match="DATA: does not name the class cancer, it has liver, spleen"):
        check_fits(study("liver"), known)
    with pytest.raises(UserError, match="DATA: has no labelled test case"):
        check_fits(study("liver"), Dataset(Path("DATA"), "Other", known.classes, (case,), ()))
