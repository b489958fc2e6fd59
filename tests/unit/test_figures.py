"""The report's figures show the numbers they are given."""

from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import nibabel
import numpy as np
import pytest

from lampseg.errors import UserError
from lampseg.evaluation import Comparison, ComparisonRow, Evaluation, SliceView
from lampseg.evaluation.report.boxplots import box_plot
from lampseg.evaluation.report.figures import data_uri, dice_against_seconds, training_curves
from lampseg.evaluation.report.plan_check import PlanCheck
from lampseg.evaluation.report.plan_figures import memory_picture, timetable_picture
from lampseg.evaluation.report.run_folder import read_run
from lampseg.evaluation.report.scores import scores_of
from lampseg.evaluation.report.slices import slice_figure
from tests.unit.fake_run import NAMES, comparison, make_plan, make_run, slice_view, stage


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_memory_picture_stacks_the_parts_of_each_device(run: Path) -> None:
    folder = read_run(run)
    left, right = memory_picture(PlanCheck(folder.plans[0], folder.totals(0))).axes
    ends = [
        max(bar.get_x() + bar.get_width() for bar in left.patches if round(bar.get_center()[1]) == i) for i in (0, 1)
    ]
    assert ends == pytest.approx([109, 90])  # in MiB, with libraries
    measured = next(line for line in left.lines if line.get_label() == "tensors, measured")
    assert list(measured.get_xdata()) == [98, 82]
    predicted = left.collections[0].get_segments()
    assert [segment[0][0] for segment in predicted] == [99, 80], "without libraries"
    assert sorted(bar.get_width() for bar in right.patches) == pytest.approx([25, 45, 55, 75])


def test_memory_picture_where_nothing_was_measured(run: Path) -> None:
    left, right = memory_picture(PlanCheck(make_plan((8, 8, 8)), read_run(run).totals(7))).axes
    assert not left.lines
    assert len(right.patches) == 2


def test_timetable_picture_shows_every_pass_when_it_runs() -> None:
    plan = make_plan((8, 8, 8))
    (axes,) = timetable_picture(plan).axes
    for lane, entries in zip(axes.collections, plan.timetable().devices, strict=True):
        extents = [path.get_extents() for path in lane.get_paths()]
        assert [(e.x0, e.x1) for e in extents] == [pytest.approx((1e3 * e.start, 1e3 * e.end)) for e in entries]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "0", "1", "0", "0", "1", "1"]


def test_stages_of_one_device_have_shades_of_their_own() -> None:
    plan = make_plan((8, 8, 8))
    stages = tuple(stage(i, device=place, forward=0.1) for i, place in enumerate((0, 1, 1, 0)))
    choices = replace(plan.choices, schedule="v", cuts=(10, 20, 30), recompute=("none",) * 4)
    (axes,) = timetable_picture(replace(plan, stages=stages, choices=choices, links=())).axes
    colours = {tuple(colour) for colour in axes.collections[0].get_facecolor()}
    assert len(colours) == 4, "forward and backward of two stages"
    (large,) = timetable_picture(replace(plan, choices=replace(plan.choices, micro_batches=200))).axes
    assert not large.texts, "numbers would not be readable"


def test_training_curves_show_stages_means_and_the_selected_step(run: Path) -> None:
    loss, dice = training_curves(read_run(run)).axes
    assert [text.get_text() for text in loss.texts] == ["32 x 32 x 32", "whole volumes"]
    raw, mean = loss.lines[0], loss.lines[1]
    assert raw.get_ydata() == pytest.approx([1 / i for i in range(1, 21)])
    assert mean.get_ydata()[10] == pytest.approx((raw.get_ydata()[9] + raw.get_ydata()[10]) / 2)
    assert list(loss.lines[3].get_xdata()) == list(range(21, 31))  # the average does not cross stages
    star = next(line for line in dice.lines if line.get_label() == "selected")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (25, 0.62)
    assert "Chiasm" not in [line.get_label() for line in dice.lines]  # never scored


def test_dice_against_seconds_shows_a_point_for_each_row() -> None:
    axes = dice_against_seconds(comparison()).axes[0]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
    assert np.asarray(points) == pytest.approx(np.asarray([(0.5, 68.3333), (4.25, 56.6667)])), "in percent"
    unscored = Evaluation.from_cases({"a": (None, None, None)}, class_names=NAMES)
    assert data_uri(dice_against_seconds(Comparison((ComparisonRow("none", unscored, 0.0),))))


def test_rows_of_a_series_share_colour_and_line_and_those_of_an_input_their_marker() -> None:
    one, two = (row.evaluation for row in comparison().rows)
    rows = [
        ComparisonRow(f"{name} {size}", one if name == "unet" else two, seconds, series=name, input=size)
        for name, size, seconds in (
            ("unet", "64", 2.0),
            ("unet", "whole", 1.0),
            ("se", "64", 3.0),
            ("se", "whole", 2.0),
        )
    ]
    lines, points = [], []
    for line in dice_against_seconds(Comparison(tuple(rows))).axes[0].lines:
        (points if line.get_linestyle() == "None" else lines).append(line)
    assert [list(line.get_xdata()) for line in lines] == [[2.0, 1.0], [3.0, 2.0]]
    assert points[0].get_color() == points[1].get_color() == lines[0].get_color() != points[2].get_color()
    assert points[0].get_marker() == points[2].get_marker() != points[1].get_marker() == points[3].get_marker()


def test_boxes_and_dots_show_every_case() -> None:
    groups = [(row.label, scores_of(row.evaluation)) for row in comparison().rows]
    axes = box_plot(groups, groups[0][1].metrics[0]).axes[0]
    dots = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "."]
    assert dots == [[0.9, 0.8], [0.5], [0.8, 0.6], [0.7, 0.5], [0.6], [0.5, 0.5]], "organ by organ, method by method"
    medians = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 1.4]
    assert medians == pytest.approx([0.85, 0.5, 0.7, 0.6, 0.6, 0.5])
    assert [tick.get_text().strip() for tick in axes.get_xticklabels()] == list(NAMES[1:])
    unscored = scores_of(Evaluation.from_cases({"a": (None, 0.5, None)}, class_names=NAMES))
    assert len(box_plot([("", unscored)], unscored.metrics[0]).axes[0].patches) == 1, "no box where nothing was scored"


def test_slices_go_through_the_organ_with_both_contours() -> None:
    view = slice_view()
    assert view.shown_class == 1
    assert view.truth[view.centre] == 1
    figure = slice_figure(view)
    axial = figure.axes[2]
    assert axial.get_title() == f"axial, slice {view.centre[2]}"
    assert [contour.linestyles for contour in axial.collections] == ["solid", "dashed"]  # truth, prediction
    assert matplotlib.colors.same_color(
        axial.collections[0].get_edgecolor()[0], axial.collections[1].get_edgecolor()[0]
    )
    low, high = axial.collections[0].get_paths()[0].get_extents().get_points()
    assert (low, high) == (pytest.approx([11.5, 5.25]), pytest.approx([16.5, 12.75]))  # mm, half a voxel outside
    left, right = axial.get_xlim()
    assert left > right  # the patient's right is on the left
    close = figure.axes[5]
    assert abs(np.diff(close.get_xlim())[0]) < abs(left - right) + 1


def test_slices_through_the_largest_error() -> None:
    view = replace(slice_view(), through="error")
    too_much = view.truth.copy()
    too_much[13:16, 9:11, 4:7] = 1
    view = replace(view, prediction=too_much)
    assert view.centre == (13, 9, 4), "where the organ was found beyond its border"
    assert replace(view, through="organ").centre == (12, 4, 3)
    found_elsewhere = np.zeros_like(view.truth)
    found_elsewhere[0, 15, 0] = 1
    lone = replace(view, truth=view.truth * 0, prediction=found_elsewhere)
    assert lone.centre == (0, 15, 0)
    low, high = slice_figure(lone, margin=2.0).axes[5].get_ylim()
    assert low < 15 * 1.5 <= high, "the close-up shows it"


def test_slices_of_an_organ_that_is_not_there() -> None:
    view = slice_view()
    absent = SliceView("x", view.image, view.truth * 0, view.prediction * 0, NAMES, view.spacing, organ="Chiasm")
    assert absent.centre == (10, 8, 6)
    assert data_uri(slice_figure(absent), kind="png").startswith("data:image/png;base64,")


def test_slices_from_files_of_any_orientation(tmp_path: Path) -> None:
    view = slice_view()
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])  # stored from right to left
    paths = []
    for name in ("image", "truth", "prediction"):
        array = getattr(view, name)[::-1]
        paths.append(tmp_path / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, affine), paths[-1])
    read = SliceView.from_files(*paths, title="x", class_names=NAMES)
    assert read.spacing == pytest.approx(view.spacing)
    np.testing.assert_array_equal(read.truth, view.truth)
    np.testing.assert_allclose(read.image, view.image)
    nibabel.save(nibabel.Nifti1Image(view.truth[:5], affine), paths[1])
    with pytest.raises(UserError, match=r"truth\.nii\.gz: shape \(5, 16, 12\), but"):
        SliceView.from_files(*paths, title="x", class_names=NAMES)
