"""The job: configuration -> prepared cases, class weights, steps. No device is needed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lampseg.config import Config
from lampseg.data import Dataset, PreparedCase, Sampler, check_channels, dataset_of, prepare, split_training
from lampseg.data.augmentation import check_sides, side_pairs
from lampseg.errors import UserError
from lampseg.networks import build_network, network_sizes
from lampseg.training.class_weights import adaptive_class_weights, unseen_classes
from lampseg.training.patches import check_patch, patches_of


@dataclass(frozen=True)
class Job:
    """What a training run works on; every process derives the same from the same configuration."""

    config: Config
    dataset: Dataset
    training: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]
    stride: tuple[int, int, int]
    window: tuple[int, int, int] | None
    """The only size that the network takes, if it takes no other: whole volumes are then segmented in such windows."""
    class_weights: tuple[float, ...]
    unseen: tuple[str, ...]
    """Classes without a single annotated voxel in the training split."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @property
    def channels(self) -> int:
        """Of the images."""
        return len(self.dataset.channels)

    def sampler(self, stage: int) -> Sampler:
        """Draws the mini-batches of a curriculum stage."""
        settings = self.config.curriculum[stage]
        return Sampler(
            self.training,
            patch=settings.size,
            batch=settings.batch,
            stride=self.stride,
            seed=self.config.seed,
            stage=stage,
            positive=self.config.sampling.positive,
            class_balanced=self.config.sampling.class_balanced,
            augmentation=self.config.augmentation,
            pairs=side_pairs(self.classes),
        )

    def steps(self, stage: int) -> int:
        """Optimizer steps of a curriculum stage."""
        settings = self.config.curriculum[stage]
        if settings.steps is not None:
            return settings.steps
        assert settings.epochs is not None
        return settings.epochs * self.sampler(stage).steps_per_epoch

    def build(self) -> nn.Module:
        """The network with its initial weights: the same on every process and for every number of them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            network = build_network(self.config.network, in_channels=self.channels, out_channels=len(self.classes))
        return network.double() if self.config.precision == "float64" else network


def prepare_job(config: Config, *, cache: Path, on_case: Callable[[str], None] | None = None) -> Job:
    """Reads the dataset, splits it, and brings its cases onto the network's grid (or finds them in `cache`).

    Raises:
        UserError: anything wrong with the data, the network, or how the two fit together.
    """
    dataset = dataset_of(config.data)
    check_sides(config.augmentation, dataset.classes)
    training, validation = split_training(dataset, fraction=config.data.validation, seed=config.seed)
    check_channels((*training, *validation), channels=dataset.channels)
    folder = config.data.cache or cache
    ready = prepare(
        (*training, *validation), classes=len(dataset.classes), data=config.data, folder=folder, on_case=on_case
    )
    train_cases, validation_cases = ready[: len(training)], ready[len(training) :]
    voxels = [case.voxels for case in train_cases]
    annotated = [
        [1 if c == 0 or c in case.annotated else 0 for c in range(len(dataset.classes))] for case in train_cases
    ]
    given = config.loss.class_weights
    if isinstance(given, tuple):
        if len(given) != len(dataset.classes):
            raise UserError(
                f"loss.class_weights: {len(given)} weights for {len(dataset.classes)} classes "
                f"({', '.join(dataset.classes)}): give one each, background first"
            )
        weights = given
    elif given == "equal":
        weights = (1.0,) * len(dataset.classes)
    else:
        weights = adaptive_class_weights(voxels, annotated)
    unseen = unseen_classes(voxels, annotated)
    if len(unseen) >= len(dataset.classes) - 1 and 0 not in unseen:
        raise UserError(
            f"{dataset.root}: none of the {len(training)} training cases has an annotated voxel of any organ "
            f"({', '.join(dataset.classes[1:])}); check the label files, lower data.validation, or choose a finer "
            "data.spacing"
        )
    network = build_network(config.network, in_channels=len(dataset.channels), out_channels=len(dataset.classes))
    stride, window = network_sizes(network, in_channels=len(dataset.channels), patches=patches_of(config))
    job = Job(
        config=config,
        dataset=dataset,
        training=train_cases,
        validation=validation_cases,
        stride=stride,
        window=window,
        class_weights=weights,
        unseen=tuple(dataset.classes[c] for c in unseen),
    )
    for index, stage in enumerate(config.curriculum):
        check_patch(stage, index=index, stride=stride, window=window)
        job.sampler(index)  # refuses a patch larger than every volume
    return job


def largest_volume(job: Job) -> tuple[int, int, int]:
    """Per axis the size of the largest training volume, padded to the network's stride."""
    x, y, z = (
        max(-(-case.shape[axis] // step) * step for case in job.training) for axis, step in enumerate(job.stride)
    )
    return x, y, z


def smallest_volume(job: Job) -> tuple[int, int, int]:
    """The training volume of fewest voxels, padded to the network's stride."""
    sizes = ([-(-size // step) * step for size, step in zip(case.shape, job.stride)] for case in job.training)
    x, y, z = min(sizes, key=math.prod)
    return x, y, z


def padded_stages(job: Job) -> tuple[bool, ...]:
    """For each curriculum stage, whether some training volume is padded: to the stride, to the patch, or by a warp."""
    return tuple(
        job.config.augmentation.resamples
        or any(
            size % step if stage.size is None else size < stage.size[axis]
            for case in job.training
            for axis, (size, step) in enumerate(zip(case.shape, job.stride))
        )
        for stage in job.config.curriculum
    )
