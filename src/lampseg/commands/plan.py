"""`plan`: what fits and how it is split, before anything runs, from the headers of the data alone."""

import math
from dataclasses import replace

from lampseg.config import Config
from lampseg.errors import UserError
from lampseg.light import uncollected, uncompiled
from lampseg.networks import build_network, network_sizes, on_meta
from lampseg.parallel.devices import parse_devices
from lampseg.partition import Plan
from lampseg.partition.questions import fewest_devices, largest_patch
from lampseg.training.patches import check_patch, patches_of
from lampseg.training.plans_in_tiles import check_alone
from lampseg.training.subject import Size, Subject, hardware_of
from lampseg.training.ways import ways_of
from lampseg.units import parse_bytes


@uncollected()
@uncompiled()
def subject_of(
    config: Config, *, shape: Size | None = None, classes: int | None = None, channels: int | None = None
) -> Subject:
    """Reads what a plan depends on.

    Args:
        shape: of the largest volume in voxels on the network's grid; None reads it from the dataset's headers.
        classes: number of classes with the background; None reads it from the dataset.
        channels: of the images; None reads it from the dataset, or means one if the others are given.

    Raises:
        UserError: the data can't be read, or the configuration does not fit them.
    """
    devices = parse_devices(config.parallel.devices, planning=True)
    if shape is not None and min(shape) < 1:
        raise UserError(f"--shape: {list(shape)} is not three sizes above 0, in voxels")
    if classes is not None and classes < 2:
        raise UserError(f"--classes: {classes} is too few; count the background, so give 2 or more")
    if shape is None or classes is None:
        from lampseg.data import check_channels, dataset_of, split_training
        from lampseg.data.headers import largest_shape

        dataset = dataset_of(config.data)
        classes = classes or len(dataset.classes)
        channels = channels or len(dataset.channels)
        training, _ = split_training(dataset, fraction=config.data.validation, seed=config.seed)
        check_channels(training, channels=dataset.channels)
        shape = shape or largest_shape((case.images for case in training), data=config.data)
    count, inputs = classes, channels or 1
    network = on_meta(lambda: build_network(config.network, in_channels=inputs, out_channels=count))
    if config.precision == "float64":
        network = network.double()
    stride, window = network_sizes(network, in_channels=inputs, patches=patches_of(config))
    for index, stage in enumerate(config.curriculum):
        check_patch(stage, index=index, stride=stride, window=window, largest=shape)
    x, y, z = (-(-size // step) * step for size, step in zip(shape, stride))
    hardware = hardware_of(config, devices)
    warped, filled = config.augmentation.resamples, (x, y, z) != tuple(shape)
    padded = tuple(warped or (stage.whole and filled) for stage in config.curriculum)
    return Subject(config, network, classes, stride, (x, y, z), devices, hardware, inputs, padded)


@uncollected()
@uncompiled()
def plan_largest_patch(subject: Subject) -> tuple[tuple[int, ...], Plan]:
    """The largest patch of the last curriculum stage's batch that fits, and its plan.

    Raises:
        UserError: the memory of the devices is not known, or no patch fits.
    """
    if subject.devices.memory is None:
        raise UserError("--largest-patch: the memory of the devices is not known: state it, as in --devices 4x16GiB")
    if subject.config.parallel.mode == "tiled":
        check_alone(subject.devices.count)
    problem, solve = subject.problem(-1), ways_of(subject).solve
    found = largest_patch(problem, stride=subject.stride, volume=subject.volume, solve=solve)
    if found is None:
        solve(replace(problem, size=subject.volume))  # which says so, if no patch can be planned
        raise UserError(
            f"--largest-patch: not even the smallest patch {list(subject.stride)} fits {subject.devices.count} "
            "device(s): use more devices, or a smaller network"
        )
    return found


@uncollected()
@uncompiled()
def plan_fewest_devices(subject: Subject, *, memory: str) -> Plan:
    """The fewest devices of so much memory each on which the last curriculum stage fits.

    Raises:
        UserError: `memory` is not an amount such as 16GiB, or no number of devices does.
    """
    size = parse_bytes(memory)
    if size is None:
        raise UserError(f"--fewest-devices: {memory!r} is not an amount of memory such as 16GiB")
    # A GPU of this memory is meant, as by --devices NxMEMORY, unless the hardware is named.
    hardware = hardware_of(subject.config, parse_devices(f"1x{memory}", planning=True))
    subject = replace(subject, hardware=hardware)
    ways, mode, slabs = ways_of(subject), subject.config.parallel.mode, subject.config.parallel.slabs
    found = fewest_devices(
        subject.problem(-1),
        memory=size,
        solve=ways.solve if mode == "tiled" else ways.several,
        unit=1 if slabs == "auto" else math.prod(slabs),
    )
    if found is None and mode == "tiled":
        raise UserError(
            f"--fewest-devices: one device of {memory} is not enough for tiles, and parallel.mode: tiled is for one: "
            "use parallel.mode: auto or spatial for several"
        )
    if found is None:
        raise UserError(
            f"--fewest-devices: no number of devices of {memory} is enough: a single operation needs more; use "
            "parallel.mode: spatial, devices with more memory, precision: bfloat16, or a smaller patch"
        )
    return found
