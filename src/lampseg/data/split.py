"""Which cases are trained on, validated on and tested on: by the data, by seed, or by a file; the same everywhere."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lampseg.data.cases import Case, Dataset
from lampseg.data.formats.described import few, read_object
from lampseg.errors import UserError

PARTS = ("training", "validation", "test")


def split_training(dataset: Dataset, *, fraction: float, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Splits the training cases into (training, validation), by `seed` and case ids only.

    Which side a case falls on depends on a hash of its id, so adding a case moves few others. With two cases or
    more, a fraction above 0 gives at least one validation case, and one below or at 1 leaves one to train on.
    Where the dataset names its validation cases, it is those, whatever fraction and seed.
    """
    assert 0 <= fraction <= 1
    cases = dataset.training
    if dataset.validation is not None:
        held_out = set(dataset.validation)
    else:
        wanted = round(fraction * len(cases))
        count = min(max(wanted, 1 if fraction > 0 else 0), len(cases) - 1)
        held_out = {case.id for case in _ranked(cases, seed)[:count]}
    return tuple(c for c in cases if c.id not in held_out), tuple(c for c in cases if c.id in held_out)


def draw_test(dataset: Dataset, *, count: int, seed: int) -> Dataset:
    """Makes `count` random training cases the test set, by `seed` and case ids only.

    They replace the dataset's own test cases, which are left out: MSD's have no labels. Liver in the paper: 27 of 131.

    Raises:
        UserError: fewer than two cases would be left, one to train on and one to validate on.
    """
    cases = dataset.training
    if count > len(cases) - 2:
        raise UserError(
            f"data.test_cases: {count} of {len(cases)} labelled cases would leave {max(len(cases) - count, 0)} to "
            f"train and validate on; at most {max(len(cases) - 2, 0)} are possible"
        )
    drawn = {case.id for case in _ranked(cases, seed)[:count]}
    held_out = dataset.validation
    if held_out is not None:
        held_out = tuple(name for name in held_out if name not in drawn)
    return replace(
        dataset,
        training=tuple(case for case in cases if case.id not in drawn),
        test=tuple(case for case in cases if case.id in drawn),
        validation=held_out,
    )


def split_by_file(dataset: Dataset, source: Path) -> Dataset:
    """Takes the case ids of each part from a file {"training": [...], "validation": [...], "test": [...]}.

    Without `validation`, validation cases are drawn by seed. Cases that are not listed are left out.

    Raises:
        UserError: the file can't be read; an id is unknown, or listed twice; a case to train or validate on has no
            label; none to train on.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file; data.split is a JSON file with the case ids of {', '.join(PARTS)}")
    tree = read_object(source)
    unknown = [key for key in tree if key not in PARTS]
    if unknown:
        raise UserError(f"{source}: unknown key {few(unknown)}; there are {', '.join(PARTS)}")
    for part, ids in tree.items():
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise UserError(f"{source}: `{part}` must be a list of case ids")
    known = {case.id: case for case in (*dataset.training, *dataset.test)}
    listed = [name for ids in tree.values() for name in ids]
    strange = sorted({name for name in listed if name not in known})
    if strange:
        raise UserError(f"{source}: {dataset.root} has no case {few(strange)}; its cases are {few(known)}")
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise UserError(f"{source}: {few(twice)} listed more than once; a case is in one part only")
    learnt = [*tree.get("training", ()), *tree.get("validation", ())]
    without = [name for name in learnt if not known[name].labelled]
    if without:
        raise UserError(f"{source}: {few(without)} has no label, so it can only be in `test`")
    if not tree.get("training"):
        raise UserError(f"{source}: `training` lists no case; list at least one")
    return replace(
        dataset,
        training=tuple(known[name] for name in learnt),
        test=tuple(known[name] for name in tree.get("test", ())),
        validation=tuple(tree["validation"]) if "validation" in tree else None,
    )


class _Named(Protocol):
    @property
    def id(self) -> str: ...


def split_to_json(training: Iterable[_Named], validation: Iterable[_Named], test: Iterable[_Named]) -> str:
    """The ids of the cases of the three parts, as a file that `data.split` takes."""
    parts = zip(PARTS, (training, validation, test), strict=True)
    return json.dumps({part: sorted(case.id for case in cases) for part, cases in parts}, indent=2) + "\n"


def check_recorded(record: Path, split: str, *, resume: bool) -> None:
    """Raises UserError if a run that is resumed recorded other cases than `split` (of `split_to_json`) names."""
    if not resume or not record.is_file():
        return
    before, now = read_object(record), json.loads(split)
    for part in PARTS:
        changed = sorted(set(before.get(part, ())) ^ set(now[part]))
        if changed:
            raise UserError(
                f"{record}: the run was begun with other {part} cases ({few(changed)} differ): bring the dataset, or "
                "the file of data.split, back to what it was, or begin another run"
            )


def _ranked(cases: Iterable[Case], seed: int) -> list[Case]:
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case.id}".encode()).digest())
