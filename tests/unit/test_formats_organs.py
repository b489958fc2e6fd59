"""The HaN data as PDDCA (NRRD) and as AnatomyNet (.npy): the split by number, missing masks, and masks merged."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.config import DataConfig
from lampseg.data import Case, Volume, dataset_of, read_dataset, read_image, read_truth, truth_affine, truths_of
from lampseg.data.formats.organs import ORGANS, part_of
from lampseg.data.volume import VOXEL_SIZE
from lampseg.errors import UserError
from tests.unit.format_folders import box, organ_case, write_nrrd

PARTS = {
    "train": ("0001", "0328"),
    "optional": ("0329", "0479"),
    "offsite": ("0555", "0746"),
    "onsite": ("0788", "0878"),
}
SHAPE = (12, 11, 10)


def pddca(root: Path) -> Path:
    for numbers in PARTS.values():
        for number in numbers:
            organ_case(root / f"0522c{number}")
    return root


def numbers(cases: tuple[Case, ...]) -> list[str]:
    return [case.id.removeprefix("0522c") for case in cases]


def test_pddca_is_split_by_number(tmp_path: Path) -> None:
    root = pddca(tmp_path)
    dataset = read_dataset(root)
    assert dataset.classes == ("background", *ORGANS)
    assert numbers(dataset.training) == ["0001", "0328", "0329", "0479"]
    assert numbers(dataset.test) == ["0555", "0746"]
    case = dataset.test[0]
    assert case.images == (root / "0522c0555/img.nrrd",)
    assert case.masks[1] == (2, root / "0522c0555/structures/Chiasm.nrrd")
    assert (case.label, case.annotated, case.labelled) == (None, None, True)


@pytest.mark.parametrize(
    ("parts", "training"),
    [(["train"], ["0001", "0328"]), (["train", "onsite"], ["0001", "0328", "0788", "0878"])],
)
def test_other_parts_can_be_trained_on(tmp_path: Path, parts: Any, training: list[str]) -> None:
    dataset = dataset_of(DataConfig(root=pddca(tmp_path), pddca_training=parts))
    assert numbers(dataset.training) == training
    assert numbers(dataset.test) == ["0555", "0746"]


def test_numbers_between_the_parts_are_refused(tmp_path: Path) -> None:
    assert [part_of(f"0522c{number}") for pair in PARTS.values() for number in pair] == [
        part for part in PARTS for _ in range(2)
    ]
    assert part_of("HN-CHUM-001") is None
    for number in ("0000", "0480", "0554", "0747", "0787", "0879"):
        with pytest.raises(UserError, match=f"0522c{number}: no case of PDDCA"):
            part_of(f"0522c{number}")


def test_cases_may_lie_in_the_parts_that_are_downloaded(tmp_path: Path) -> None:
    organ_case(tmp_path / "PDDCA-1.4.1_part1/0522c0001")
    organ_case(tmp_path / "PDDCA-1.4.1_part3/0522c0600")
    organ_case(tmp_path / "__MACOSX/0522c0001")
    dataset = read_dataset(tmp_path)
    assert (numbers(dataset.training), numbers(dataset.test)) == (["0001"], ["0600"])


def test_a_mask_that_is_missing_was_not_drawn(tmp_path: Path) -> None:
    organ_case(tmp_path / "0522c0001", organs=("BrainStem", "Parotid_R"))
    organ_case(tmp_path / "0522c0600", organs=())
    dataset = read_dataset(tmp_path)
    assert dataset.training[0].annotated == (1, 7)
    assert [index for index, _ in dataset.training[0].masks] == [1, 7]
    assert (dataset.test[0].annotated, dataset.test[0].labelled) == (None, False)
    assert truths_of(dataset) == {"0522c0001": dataset.training[0]}


def test_broken_folders_are_named(tmp_path: Path) -> None:
    organ_case(tmp_path / "0522c0001")
    (organ_case(tmp_path / "0522c0002") / "img.nrrd").unlink()
    with pytest.raises(UserError, match=r"1 case\(s\) without img\.nrrd: .*0522c0002"):
        read_dataset(tmp_path)
    shutil.rmtree(tmp_path / "0522c0002")
    organ_case(tmp_path / "0522c0002", organs=("Tongue",))
    with pytest.raises(UserError, match=r"case 0522c0002 has no mask: nothing is called structures/ORGAN\.nrrd"):
        read_dataset(tmp_path)
    organ_case(tmp_path / "only/0522c0600")
    with pytest.raises(UserError, match="there is no training case"):
        read_dataset(tmp_path / "only")
    organ_case(tmp_path / "again/part1/0522c0001")
    organ_case(tmp_path / "again/part2/0522c0001")
    with pytest.raises(UserError, match="0522c0001 listed more than once"):
        read_dataset(tmp_path / "again")


def test_anatomynet_trains_on_all_but_the_offsite_cases(tmp_path: Path) -> None:
    for number in ("0001", "0400", "0600", "0800"):
        organ_case(tmp_path / f"pddca18/0522c{number}", npy=True)
    organ_case(tmp_path / "HNCetuximabclean/0522c-like", organs=("Mandible",), npy=True)
    dataset = read_dataset(tmp_path)
    assert numbers(dataset.training) == ["-like", "0001", "0400", "0800"]
    assert numbers(dataset.test) == ["0600"]
    assert dataset.training[0].annotated == (3,)
    assert dataset == read_dataset(tmp_path, format="anatomynet")


def test_npy_volumes_are_turned_and_get_the_stated_size(tmp_path: Path) -> None:
    case = organ_case(tmp_path / "0522c0001", npy=True)
    scan = np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE[::-1])  # z, y, x
    np.save(case / "img_crp_v2.npy", scan)
    for index, organ in enumerate(ORGANS):
        mask = np.zeros(SHAPE[::-1], np.uint8)
        mask[index, 2, 3] = 1
        np.save(case / f"structures/{organ}_crp_v2.npy", mask.astype(bool) if index == 4 else mask)
    (read,) = read_dataset(tmp_path).training
    image = read_image(read.images)
    assert image.array.shape == (1, *SHAPE)
    assert image.array[0, 3, 2, 1] == scan[1, 2, 3]
    np.testing.assert_array_equal(image.affine, np.diag([-0.76, -0.76, 1.25, 1]))
    np.testing.assert_array_equal(read_image(read.images, voxel_size=(1, 2, 3)).affine, np.diag([-1, -2, 3, 1]))
    np.testing.assert_array_equal(truth_affine(read), image.affine)
    np.testing.assert_array_equal(truth_affine(read, voxel_size=(1, 2, 3)), np.diag([-1, -2, 3, 1]))
    for like in (None, image, read_image(read.images, voxel_size=(1, 2, 3))):
        truth = read_truth(read, classes=10, like=like)
        assert truth[3, 2, :9].tolist() == list(range(1, 10))
        assert np.count_nonzero(truth) == 9


def test_the_default_voxel_size_is_the_readers() -> None:
    assert DataConfig(root=Path("x")).voxel_size == VOXEL_SIZE


def truth_of(folder: Path, masks: dict[int, Any], like: Volume | None = None) -> Any:
    paths = [(index, write_nrrd(folder / f"{index}.nrrd", mask, np.eye(4))) for index, mask in masks.items()]
    return read_truth(Case("a", (Path("a"),), None, tuple(masks), tuple(paths)), classes=10, like=like)


def test_a_contested_voxel_goes_to_the_smaller_organ(tmp_path: Path) -> None:
    large, small = box(SHAPE, 1, 7), box(SHAPE, 5, 9)
    for first, second in ((2, 6), (6, 2)):
        truth = truth_of(tmp_path, {first: large, second: small})
        np.testing.assert_array_equal(truth == second, small == 1)
        np.testing.assert_array_equal(truth == first, (large == 1) & (small == 0))
    moved = write_nrrd(tmp_path / "moved.nrrd", large, np.diag([2, 1, 3, 1]))
    np.testing.assert_array_equal(truth_affine(Case("a", (), None, None, ((1, moved),))), np.diag([2, 1, 3, 1]))
    np.testing.assert_array_equal(truth_affine(Case("a", (), moved, None)), np.diag([2, 1, 3, 1]))
    assert truth_of(tmp_path, {3: box(SHAPE, 1, 4), 5: box(SHAPE, 3, 6)})[3, 3, 3] == 5
    assert truth_of(tmp_path, {5: box(SHAPE, 1, 4), 3: box(SHAPE, 3, 6)})[3, 3, 3] == 5


def test_any_value_above_zero_is_inside(tmp_path: Path) -> None:
    mask = box(SHAPE, 2, 5).astype(np.float32) * 255
    mask[0, 0, :3] = [0.25, -1, 0]
    truth = truth_of(tmp_path, {4: mask})
    assert truth[0, 0, :3].tolist() == [4, 0, 0]
    assert np.count_nonzero(truth) == 28
    mask[0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"4\.nrrd: the mask holds NaN"):
        truth_of(tmp_path, {4: mask})


def test_masks_on_another_grid_are_refused(tmp_path: Path) -> None:
    scan = Volume(np.zeros((1, *SHAPE), np.float32), np.diag([1, 1, 2.0, 1]))
    with pytest.raises(UserError, match=r"1\.nrrd: affine .* differs from its image's"):
        truth_of(tmp_path, {1: box(SHAPE, 1, 4)}, like=scan)
    with pytest.raises(UserError, match=r"1\.nrrd: mask of shape 12x11x9, but its image has 12x11x10"):
        truth_of(tmp_path, {1: box(SHAPE, 1, 4)[:, :, :9]}, like=scan)
    with pytest.raises(UserError, match=r"2\.nrrd: shape \[12, 11, 9\], but .*1\.nrrd has \[12, 11, 10\]"):
        truth_of(tmp_path, {1: box(SHAPE, 1, 4), 2: box(SHAPE, 1, 4)[:, :, :9]})
