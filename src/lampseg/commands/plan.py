"""`plan`: what fits and how it is split, before anything runs, from the headers of the data alone."""

from lampseg.config import Config
from lampseg.data import read_dataset, split_training
from lampseg.data.headers import largest_shape
from lampseg.errors import UserError
from lampseg.networks import build_network, network_sizes, on_meta
from lampseg.parallel.devices import parse_devices
from lampseg.partition import Plan
from lampseg.training.job import check_patch, make_plans, patches_of


def plan(config: Config, *, shape: tuple[int, int, int] | None = None, classes: int | None = None) -> tuple[Plan, ...]:
    """One plan per curriculum stage.

    Args:
        shape: of the largest volume in voxels on the network's grid; None reads it from the dataset's headers.
        classes: number of classes with the background; None reads it from the dataset.

    Raises:
        UserError: the data can't be read, or a stage does not fit the devices.
    """
    devices = parse_devices(config.parallel.devices, planning=True)
    if shape is not None and min(shape) < 1:
        raise UserError(f"--shape: {list(shape)} is not three sizes above 0, in voxels")
    if classes is not None and classes < 2:
        raise UserError(f"--classes: {classes} is too few; count the background, so give 2 or more")
    if shape is None or classes is None:
        dataset = read_dataset(config.data.root, format=config.data.format)
        classes = classes or len(dataset.classes)
        training, _ = split_training(dataset, fraction=config.data.validation, seed=config.seed)
        shape = shape or largest_shape((case.image for case in training), data=config.data)
    count = classes
    network = on_meta(lambda: build_network(config.network, in_channels=1, out_channels=count))
    if config.precision == "float64":
        network = network.double()
    stride, window = network_sizes(network, in_channels=1, patches=patches_of(config))
    for index, stage in enumerate(config.curriculum):
        check_patch(stage, index=index, stride=stride, window=window, largest=shape)
    x, y, z = (-(-size // step) * step for size, step in zip(shape, stride))
    return make_plans(config, network, devices=devices, largest=(x, y, z))
