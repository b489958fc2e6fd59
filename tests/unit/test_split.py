"""Who is tested on: the data's own cases, random ones, or those of a file; and every command agrees."""

import json
from pathlib import Path
from typing import Any

import pytest

from lampseg.config import DataConfig, parse_config
from lampseg.data import Case, Dataset, dataset_of, split_training
from lampseg.data.split import check_recorded, draw_test, split_to_json
from lampseg.errors import UserError
from tests.unit.format_folders import LABELS, describe, touch


def liver(root: Path, *, cases: int = 12, test: int = 3) -> Path:
    """MSD's task 3 in small: test cases have no labels."""
    training = [{"image": f"imagesTr/liver_{n}.nii.gz", "label": f"labelsTr/liver_{n}.nii.gz"} for n in range(cases)]
    unlabelled = [f"imagesTs/liver_{n}.nii.gz" for n in range(cases, cases + test)]
    touch(root, *(path for entry in training for path in entry.values()), *unlabelled)
    return describe(root, labels=LABELS, training=training, test=unlabelled)


def ids(cases: tuple[Case, ...]) -> set[str]:
    return {case.id for case in cases}


def test_without_a_choice_the_dataset_is_as_it_was(tmp_path: Path) -> None:
    dataset = dataset_of(DataConfig(root=liver(tmp_path)))
    assert (len(dataset.training), ids(dataset.test)) == (12, {"liver_12", "liver_13", "liver_14"})


def test_the_papers_liver_split() -> None:
    cases = tuple(Case(f"liver_{n}", (Path(f"{n}"),), Path(f"{n}"), None) for n in range(131))
    dataset = draw_test(Dataset(Path(), "Liver", ("background", "liver"), cases, ()), count=27, seed=0)
    assert (len(dataset.training), len(dataset.test)) == (104, 27)
    assert ids(dataset.training) | ids(dataset.test) == ids(cases)


def test_random_test_cases_depend_on_their_seed_only(tmp_path: Path) -> None:
    root = liver(tmp_path)
    drawn = [dataset_of(DataConfig(root=root, test_cases=4, split_seed=seed)) for seed in range(6)]
    for dataset in drawn:
        assert (len(dataset.training), len(dataset.test)) == (8, 4)
        assert all(case.labelled for case in dataset.test)
        assert not ids(dataset.training) & ids(dataset.test)
    assert len({frozenset(ids(dataset.test)) for dataset in drawn}) > 1
    again = dataset_of(DataConfig(root=root, test_cases=4, split_seed=0, validation=0.5))
    assert again == drawn[0]
    # Ids that are ranked first for the test set may not all be those first in line for validation.
    _, validation = split_training(drawn[0], fraction=0.25, seed=0)
    assert len(validation) == 2
    assert not ids(validation) & ids(drawn[0].test)


def test_as_many_test_cases_as_leave_nothing_are_refused(tmp_path: Path) -> None:
    root = liver(tmp_path)
    assert len(dataset_of(DataConfig(root=root, test_cases=10)).training) == 2
    with pytest.raises(UserError, match=r"data\.test_cases: 11 of 12 labelled cases would leave 1 .*at most 10"):
        dataset_of(DataConfig(root=root, test_cases=11))


def by_file(tmp_path: Path, tree: Any) -> Dataset:
    source = tmp_path / "split.json"
    source.write_text(json.dumps(tree))
    return dataset_of(DataConfig(root=liver(tmp_path / "data"), split=source))


def test_a_file_names_all_three_parts(tmp_path: Path) -> None:
    parts = {"training": ["liver_3", "liver_1"], "validation": ["liver_7"], "test": ["liver_0", "liver_13"]}
    dataset = by_file(tmp_path, parts)
    for seed in range(3):
        training, validation = split_training(dataset, fraction=0.5, seed=seed)
        assert (ids(training), ids(validation)) == ({"liver_1", "liver_3"}, {"liver_7"})
    assert ids(dataset.test) == {"liver_0", "liver_13"}
    assert json.loads(split_to_json(training, validation, dataset.test)) == {k: sorted(v) for k, v in parts.items()}


def test_validation_is_drawn_where_the_file_names_none(tmp_path: Path) -> None:
    dataset = by_file(tmp_path, {"training": [f"liver_{n}" for n in range(10)]})
    training, validation = split_training(dataset, fraction=0.2, seed=0)
    assert (len(training), len(validation), dataset.test) == (8, 2, ())
    _, none = split_training(by_file(tmp_path, {"training": ["liver_0"], "validation": []}), fraction=0.5, seed=0)
    assert none == ()


def test_a_recorded_split_gives_the_same_again(tmp_path: Path) -> None:
    root = liver(tmp_path)
    first = dataset_of(DataConfig(root=root, test_cases=4))
    parts = split_training(first, fraction=0.25, seed=3)
    (tmp_path / "split.json").write_text(split_to_json(*parts, first.test))
    second = dataset_of(DataConfig(root=root, split=tmp_path / "split.json"))
    again = split_training(second, fraction=0, seed=99)
    assert [ids(part) for part in (*again, second.test)] == [ids(part) for part in (*parts, first.test)]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"training": ["liver_99"]}, r"has no case liver_99; its cases are liver_0, .* and 10 more"),
        ({"training": ["liver_0"], "test": ["liver_0"]}, "liver_0 listed more than once"),
        ({"training": ["liver_12"]}, "liver_12 has no label, so it can only be in `test`"),
        ({"training": ["liver_1"], "validation": ["liver_12"]}, "liver_12 has no label"),
        ({"test": ["liver_0"]}, "`training` lists no case"),
        ({"train": ["liver_0"]}, "unknown key train; there are training, validation, test"),
        ({"training": "liver_0"}, "`training` must be a list"),
        ([], "expected an object"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"split\.json: .*{message}"):
        by_file(tmp_path, tree)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: no such file; data\.split is a JSON file"):
        dataset_of(DataConfig(root=liver(tmp_path), split=tmp_path / "gone.json"))


def test_two_ways_to_choose_are_refused() -> None:
    tree = {"curriculum": [{"patch": 8, "steps": 1}], "data": {"root": "x", "split": "s.json", "test_cases": 3}}
    with pytest.raises(UserError, match="`split` and `test_cases` both choose the test set"):
        parse_config(tree)


def test_a_run_is_not_resumed_with_other_cases(tmp_path: Path) -> None:
    a, b, c = (Case(name, (Path(name),), Path(name), None) for name in "abc")
    record = tmp_path / "split.json"
    check_recorded(record, split_to_json([a], [b], [c]), resume=True)  # a run from before there were records
    record.write_text(split_to_json([a], [b], [c]))
    check_recorded(record, split_to_json([a], [b], [c]), resume=True)
    check_recorded(record, split_to_json([a, b], [c], []), resume=False)
    with pytest.raises(UserError, match=r"split\.json: the run was begun with other training cases \(b differ\)"):
        check_recorded(record, split_to_json([a, b], [], [c]), resume=True)
    with pytest.raises(UserError, match=r"other test cases \(c differ\)"):
        check_recorded(record, split_to_json([a], [b], []), resume=True)
