"""A curriculum's patches: their sizes, and whether the network takes them."""

from lampseg.config import Config, StageConfig
from lampseg.errors import UserError


def patches_of(config: Config) -> list[tuple[int, int, int]]:
    """The sizes of the curriculum's patches, without `whole`."""
    return [stage.size for stage in config.curriculum if stage.size is not None]


def check_patch(
    stage: StageConfig,
    *,
    index: int,
    stride: tuple[int, int, int],
    window: tuple[int, int, int] | None = None,
    largest: tuple[int, int, int] | None = None,
) -> None:
    """Raises UserError unless the patch is a multiple of the network's total stride.

    Args:
        window: the only size that the network takes, if it takes no other.
        largest: per axis the size of the largest volume, if known: the patch must not exceed it.
    """
    if window is not None and stage.size != window:
        raise UserError(
            f"curriculum.{index}.patch: {stage.patch} is not possible, the network only takes volumes of "
            f"{list(window)} voxels: give every stage this patch (whole volumes are segmented in windows of it)"
        )
    if stage.size is None:
        return
    if largest is not None and any(size > most for size, most in zip(stage.size, largest)):
        raise UserError(
            f"curriculum.{index}.patch: {list(stage.size)} is larger than every volume (at most {list(largest)} "
            "voxels); choose a smaller patch, `whole`, or a finer data.spacing"
        )
    if any(size % step for size, step in zip(stage.size, stride)):
        fitting = [max(step, round(size / step) * step) for size, step in zip(stage.size, stride)]
        raise UserError(
            f"curriculum.{index}.patch: {list(stage.size)} is not a multiple of the network's total stride "
            f"{list(stride)}: use for instance {fitting}"
        )
