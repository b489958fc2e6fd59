"""What several verbs do with their options."""

from lampseg.errors import UserError


def with_devices(overrides: dict[str, str], devices: str | None) -> dict[str, str]:
    """The overrides with `--devices` among them.

    Raises:
        UserError: it is empty.
    """
    if devices is None:
        return overrides
    if not devices.strip():
        raise UserError("--devices: is empty; give a number such as 2, or leave it out")
    return overrides | {"parallel.devices": devices}


def no_overrides(overrides: dict[str, str]) -> None:
    """Raises UserError if there is one: the verb has no configuration."""
    if overrides:
        raise UserError(f"unknown option --{next(iter(overrides))}; `lampseg VERB --help` lists the options")


def three(window: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    """`--window`: one size or three.

    Raises:
        UserError: it is neither.
    """
    if window is None:
        return None
    if len(window) not in (1, 3) or min(window) < 1:
        raise UserError(f"--window: {list(window)} is not one size above 0 or three, in voxels")
    x, y, z = window * 3 if len(window) == 1 else window
    return x, y, z
