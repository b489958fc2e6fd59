"""Volumes too small for a network: a single voxel is left at its deepest level, and no norm can be taken of one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lampseg.errors import UserError


@contextmanager
def enough_voxels(where: str, size: Sequence[int], *, remedy: str) -> Iterator[None]:
    """Says in the user's terms what torch says of instance and batch normalisation over one voxel.

    Args:
        where: the field or file whose size it is, for the message.
        size: in voxels, as given to the network.
        remedy: what to do about it.

    Raises:
        UserError: the dry run within failed, for this or another reason.
    """
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, ValueError) and "Expected more than 1" in str(error.__cause__):
            raise UserError(
                f"{where}: {list(size)} voxels shrink to a single one at the network's deepest level, which cannot be "
                f"normalised; {remedy}"
            ) from error
        raise
