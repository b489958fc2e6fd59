"""Two evaluations against each other: pairs, what is left out, the sentence, and the command."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from lampseg.cli import main
from lampseg.errors import UserError
from lampseg.evaluation import (
    ClassScores,
    Evaluation,
    compare_evaluations,
    comparisons_json,
    holm,
    paired_sentence,
    paired_test,
    write_evaluation,
)

NAMES = ("background", "Liver", "Tumor")
Values = dict[str, tuple[float | None, ...]]


def dice(cases: Values, *, names: tuple[str, ...] = NAMES) -> Evaluation:
    return Evaluation.from_cases(cases, class_names=names)


def runs(count: int = 12, *, gain: float = 0.03) -> tuple[Evaluation, Evaluation]:
    """B's liver is better in most cases, its tumor neither better nor worse."""
    rng = np.random.default_rng(0)
    liver, tumor, other = rng.uniform(0.7, 0.8, count), rng.uniform(0.3, 0.6, count), rng.uniform(0.3, 0.6, count)
    more = liver + gain + rng.normal(0, 0.01, count)
    return (
        dice({f"case_{i}": (float(liver[i]), float(tumor[i])) for i in range(count)}),
        dice({f"case_{i}": (float(more[i]), float(other[i])) for i in reversed(range(count))}),
    )


def scored(values: dict[str, float | None], *, ml: float = 1.0, tolerance: float = 2.0) -> Evaluation:
    """One class with `hd95`, None where nothing was found, and every case's Dice 0.5."""
    cases = {
        case: [ClassScores("both" if v is not None else "truth only", {"dice": 0.5, "hd95": v, "nsd": 0.5}, ml, 1.0)]
        for case, v in values.items()
    }
    return Evaluation.from_scores(cases, class_names=NAMES[:2], tolerance_mm=(tolerance,))


def test_pairs_are_made_by_name_not_by_order() -> None:
    a, b = runs()
    found = compare_evaluations(a, b)
    by_case = {case.case: case.dice for case in b.cases}
    expected = paired_test([case.dice[0] or 0 for case in a.cases], [by_case[case.case][0] or 0 for case in a.cases])
    assert found.classes[0].test == expected
    assert expected.wins == 12
    assert [row.organ for row in found.classes] == ["Liver", "Tumor"]
    assert [row.p_holm for row in found.classes] == list(holm([row.test.p for row in found.classes]))
    assert found.classes[0].p_holm == pytest.approx(2 * 2 / 2**12)
    assert found.cases == found.overall.pairs == 12


def test_case_means_are_over_the_classes_that_both_have() -> None:
    a = dice({"x": (0.8, 0.2), "y": (0.6, None), "z": (None, None)})
    b = dice({"x": (0.9, None), "y": (0.7, 0.9), "z": (0.5, 0.5)})
    found = compare_evaluations(a, b)
    assert found.overall.pairs == 2
    assert (found.overall.mean_a, found.overall.mean_b) == pytest.approx((0.7, 0.8))
    liver, tumor = found.classes
    assert (liver.only_a, liver.only_b, liver.test.pairs) == (0, 1, 2)
    assert (tumor.only_a, tumor.only_b, tumor.test.pairs) == (1, 2, 0)
    assert (tumor.test.p, tumor.p_holm) == (None, None)
    assert "only one of the two has a value there (class by class): 1 of A alone, 3 of B alone" in paired_sentence(
        found
    )


def test_the_sentence_follows_from_the_numbers() -> None:
    a, b = (dice({str(i): (value,) for i, value in enumerate(values)}, names=NAMES[:2]) for values in SAMPLES)
    found = compare_evaluations(a, b, names=("small", "large"))
    interval = found.overall.interval
    assert interval is not None
    assert paired_sentence(found) == (
        f"large's mean Dice is higher than small's by 2.2 points (95% CI of the difference {100 * interval.low:.1f} to "
        f"{100 * interval.high:.1f} points), p = 0.0234 (Wilcoxon signed-rank, two-sided, exact), rank-biserial "
        "correlation +0.89, n = 8 cases: large is better in 7, equal in 0, worse in 1. At the level 0.05, large is "
        "better than small."
    )
    back = paired_sentence(compare_evaluations(b, a))
    assert "is lower than A's by 2.2 points" in back
    assert back.endswith("At the level 0.05, B is worse than A.")


DIFFERENCES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.015, 0.025, -0.012)
SAMPLES = [0.7] * 8, [0.7 + d for d in DIFFERENCES]


def sentence(a: list[float], b: list[float]) -> str:
    one, other = (dice({str(i): (v,) for i, v in enumerate(values)}, names=NAMES[:2]) for values in (a, b))
    return paired_sentence(compare_evaluations(one, other))


def test_no_proof_is_not_proof_of_none() -> None:
    text = sentence([0.5] * 8, [0.51, 0.48, 0.53, 0.46, 0.55, 0.44, 0.57, 0.42])
    assert "no difference between them is shown; that is no proof that there is none" in text
    assert "better than" not in text


def test_too_few_pairs_are_told() -> None:
    text = sentence([0.5] * 4, [0.6, 0.61, 0.62, 0.63])
    assert "p = 0.125" in text
    assert "nor could it be: with so few pairs that differ, p is never below 0.125" in text


def test_equal_runs_and_equal_means() -> None:
    assert sentence([0.5, 0.6], [0.5, 0.6]) == "B's mean Dice equals A's in each of 2 cases."
    assert "B's mean Dice equals A's (95% CI" in sentence([0.5, 0.5], [0.6, 0.4])


def test_a_mean_that_few_cases_turn_is_told() -> None:
    text = sentence([0.5] * 12, [0.51 + 0.001 * i for i in range(11)] + [0.0])
    assert "is lower than A's by 2.8 points" in text
    assert text.endswith("B is better than A by the ranks of the differences, while few large ones turn the mean.")


def test_small_numbers_are_not_written_as_nothing() -> None:
    assert "by 0.01 points" in sentence([0.5] * 3, [0.5001] * 3)
    many = [0.5 + i / 1000 for i in range(30)]
    assert "p < 0.0001" in sentence([0.4] * 30, many)


def test_lower_is_better_for_distances_and_a_missed_organ_is_left_out_and_told() -> None:
    a = scored({str(i): 5.0 + i / 10 for i in range(9)})
    b = scored({str(i): 4.0 + i / 20 if i else None for i in range(9)})
    found = compare_evaluations(a, b, metric="hd95")
    (row,) = found.classes
    assert (row.test.pairs, row.test.wins, row.only_a, row.only_b) == (8, 8, 1, 0)
    assert row.test.effect == 1.0
    text = paired_sentence(found)
    assert "B's mean HD95 is lower than A's by 1.23 mm" in text
    assert "B is better than A. " in text
    assert "1 of A alone, 0 of B alone" in text


def test_classes_are_named_after_holms_correction() -> None:
    a, b = runs()
    assert "Class by class (p adjusted by Holm's method, m = 2), B is better in Liver, and worse in none." in (
        paired_sentence(compare_evaluations(a, b))
    )
    assert "B is better in none, and worse in Liver." in paired_sentence(compare_evaluations(b, a))


def test_what_only_one_run_has_is_listed() -> None:
    a = dice({"x": (0.8, 0.2), "only here": (0.6, 0.1)})
    b = dice({"x": (0.9, 0.3), "new": (0.7, 0.2)}, names=("bg", "Tumor", "Spleen"))
    found = compare_evaluations(a, b)
    assert (found.cases_only_a, found.cases_only_b) == (("only here",), ("new",))
    assert (found.classes_only_a, found.classes_only_b) == (("Liver",), ("Spleen",))
    assert (found.classes[0].test.mean_a, found.classes[0].test.mean_b) == (0.2, 0.9)
    text = paired_sentence(found)
    for part in ("Only A scored 1 case, not compared: only here.", "Only B has Spleen."):
        assert part in text


def test_nothing_in_common_is_refused() -> None:
    a = dice({"x": (0.8, 0.2)})
    with pytest.raises(UserError, match=r"one and two share no case, .* there are x, and y"):
        compare_evaluations(a, dice({"y": (0.8, 0.2)}), names=("one", "two"))
    with pytest.raises(UserError, match=r"A and B share no class, .* there are Liver, Tumor, and Heart"):
        compare_evaluations(a, dice({"x": (0.8,)}, names=("bg", "Heart")))


def test_no_value_in_common_says_so() -> None:
    found = compare_evaluations(dice({"x": (0.8, None)}), dice({"x": (None, 0.8)}))
    assert paired_sentence(found) == "A and B have no case in which both have a Dice: nothing is shown."
    tree = json.loads(comparisons_json([found]))
    assert tree["metrics"]["dice"]["case_means"]["p"] is None


def test_a_metric_that_was_not_measured_and_other_tolerances_are_refused() -> None:
    a, b = scored({"x": 1.0}), scored({"x": 1.0}, tolerance=3.0)
    with pytest.raises(UserError, match=r"B: hd95 was not measured \(there is dice\); run .*--metrics hd95"):
        compare_evaluations(a, dice({"x": (0.5,)}, names=NAMES[:2]), metric="hd95")
    with pytest.raises(UserError, match=r"surface Dice of Liver was measured at 2\.0 and at 3\.0 mm"):
        compare_evaluations(a, b, metric="nsd")
    assert compare_evaluations(a, b, metric="hd95").cases == 1


def test_other_labels_are_a_caution() -> None:
    found = compare_evaluations(scored({"x": 1.0}), scored({"x": 1.0}, ml=1.1), metric="hd95")
    assert found.other_truths == ("x",)
    assert "Caution: the true volumes differ between the two in x" in paired_sentence(found)
    assert compare_evaluations(scored({"x": 1.0}), scored({"x": 1.0}), metric="hd95").other_truths == ()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "small" / "evaluation", tmp_path / "large" / "evaluation")
    for path, evaluation in zip(paths, runs()):
        write_evaluation(evaluation, path)
    return paths


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_command(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    main(["compare", str(folders[0] / "evaluation.json"), str(folders[1]), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "Dice: large/evaluation against small/evaluation" in said
    tree = json.loads((tmp_path / "out" / "compare.json").read_text())
    found = compare_evaluations(*runs(), names=("small/evaluation", "large/evaluation"))
    assert (tree["a"], tree["b"], tree["shared_cases"]) == (found.a, found.b, 12)
    liver = tree["metrics"]["dice"]["classes"]["Liver"]
    assert liver["p"] == found.classes[0].test.p
    assert liver["p_holm"] == found.classes[0].p_holm
    assert tree["metrics"]["dice"]["sentence"] == paired_sentence(found)
    assert " ".join(said.split()).endswith(" ".join(paired_sentence(found).split()))
    row = next(line for line in said.splitlines() if line.startswith("│ Liver"))
    assert [cell.strip() for cell in row.strip("│").split("│")][-2:] == ["12/0/0", "12"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "compare.csv").read_text())))
    assert [row["class"] for row in rows] == ["Liver", "Tumor", "case means"]
    assert float(rows[0]["p_holm"]) == pytest.approx(found.classes[0].p_holm, rel=1e-4)


def test_the_command_takes_names(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *map(str, folders), "--names", "64", "whole"])
    assert "whole's mean Dice" in " ".join(capsys.readouterr().out.split())


def test_what_the_command_refuses(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    assert "missing.json: cannot be read" in refused(capsys, a, tmp_path / "missing.json")
    assert "evaluation.json: cannot be read" in refused(capsys, a, tmp_path)
    assert "--metric: `hd` is no metric" in refused(capsys, a, b, "--metric", "hd")
    assert "hd95 was not measured" in refused(capsys, a, b, "--metric", "hd95")
    assert "both runs are called `x`" in refused(capsys, a, b, "--names", "x", "x")
    assert "summary.json: not an evaluation" in refused(capsys, a, b / "summary.json")
    assert "unknown option --foo" in refused(capsys, a, b, "--foo", "1")
    (tmp_path / "file").write_text("")
    assert "compare.json: cannot be written" in refused(capsys, a, b, "--out", tmp_path / "file")


def test_a_file_against_itself_has_names_all_the_same(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give two names that differ" in refused(capsys, folders[0], folders[0])
    main(["compare", str(folders[0]), str(folders[0]), "--names", "A", "B"])
    assert "B's mean Dice equals A's in each of 12 cases." in " ".join(capsys.readouterr().out.split())
