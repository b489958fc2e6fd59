"""Segmentation from Python, with any network: an array, or files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lampseg.config import DataConfig
from lampseg.errors import PartlyDone, UserError
from lampseg.inference.inputs import cases_of, check_apart
from lampseg.inference.mirror import Mirror
from lampseg.inference.model import Alone, Segmenter
from lampseg.inference.padding import pad_volume, padded_shape
from lampseg.inference.predictor import Prediction, Predictor, Result
from lampseg.inference.scores import probabilities as softmax
from lampseg.inference.scores import whole_scores
from lampseg.inference.tiles import Tile, whole
from lampseg.inference.windows import SlidingWindow, reached, window_scores
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import World
from lampseg.partition import Plan

Triple = tuple[int, int, int]


def segment(
    network: nn.Module,
    image: Tensor | np.ndarray,
    *,
    stride: Triple = (1, 1, 1),
    window: SlidingWindow | Triple | None = None,
    mirror: Mirror | Sequence[int] = (),
    probabilities: bool = False,
    precision: str = "float32",
    plan: Plan | None = None,
    world: World | None = None,
) -> Tensor | None:
    """Segments one image with a network, on its device, or split by a plan over the ranks of a world.

    Args:
        network: maps (N, C, X, Y, Z) to logits (N, classes, X, Y, Z), or a list of them, finest first. It is put into
            eval mode; with a plan it is changed in place (see `ParallelModel`).
        image: (C, X, Y, Z), as the network is to see it.
        stride: the network's total down-sampling; the image is padded with zeros at its ends to multiples of it.
        window: None: the whole image in one pass.
        mirror: axes 0, 1, 2 along which the image is flipped; probabilities are averaged over all combinations.
        probabilities: whether to return those.
        precision: float32, float64 or bfloat16 (mixed).
        plan: for this network, such as `lampseg.partition.make_plan` makes; not one of slabs.
        world: of `lampseg.parallel.world.membership`, with a plan.

    Returns:
        Class indices (X, Y, Z), or probabilities (classes, X, Y, Z), where the network's output is; elsewhere None.

    Raises:
        UserError: the image is no (C, X, Y, Z), the window does not fit the stride, or the plan is for slabs or for
            something else.
    """
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if array.ndim != 4:
        raise UserError(f"segment: the image has shape {list(array.shape)}; give (C, X, Y, Z)")
    model = _model(network, stride=stride, precision=precision, plan=plan, world=world)
    model.network.eval()
    flips = mirror if isinstance(mirror, Mirror) else Mirror(tuple(sorted(set(mirror))))
    sliding = window if isinstance(window, SlidingWindow) or window is None else SlidingWindow(window)
    if sliding is not None and any(size % step for size, step in zip(sliding.size, stride)):
        raise UserError(f"segment: the window {list(sliding.size)} is not a multiple of the stride {list(stride)}")
    dtype = torch.float64 if precision == "float64" else torch.float32
    device = model.world.device
    shape = padded_shape(array.shape[1:], stride, channels=len(array))

    def load(place: tuple[slice, ...], flip: Sequence[int]) -> Tensor:
        size = (*shape[:2], *(part.stop - part.start for part in place))
        x = pad_volume(array, size, device=device, dtype=dtype, region=place)
        return x.flip([axis + 2 for axis in flip]) if flip else x

    tiles: list[Tile | None] = []
    if sliding is None:
        tiles += whole_scores(model, [shape], load=lambda _, flip: load(whole(shape[2:]), flip), mirror=flips)
    else:
        shape = reached(shape, sliding.size)
        tiles += window_scores(model, shape, sliding, load=load, mirror=flips)
    found = [tile.cropped(array.shape[1:]).values for tile in tiles if tile is not None]
    if not found:
        return None
    if not probabilities:
        return torch.cat([values.argmax(0) for values in found])
    return torch.cat([values if flips.averages else softmax(values) for values in found], dim=1)


def segment_files(
    network: nn.Module,
    images: Sequence[Path | str],
    *,
    out: Path | str,
    data: DataConfig,
    classes: Sequence[str],
    channels: int = 1,
    stride: Triple = (1, 1, 1),
    window: SlidingWindow | None = None,
    mirror: Mirror | None = None,
    result: Result | None = None,
    precision: str = "float32",
) -> list[Prediction]:
    """Segments files with a network in this process; label files on the images' grids are written into `out`.

    Args:
        images: files, folders, or a dataset.json; see `cases_of`.
        data: spacing and intensity window that the network was trained with.
        classes: names, background first.
        channels: of the images.
        result: what is written; None: labels.

    Raises:
        UserError: no image, a result would overwrite one, or can't be written.
        PartlyDone: some images can't be segmented; all others are.
    """
    cases = cases_of([Path(image) for image in images], channels=channels)
    check_apart(cases, Path(out))
    model = Alone(network, device=_device_of(network), precision=precision)
    predictor = Predictor(model, data=data, channels=channels, stride=stride, precision=precision)
    made = result or Result(tuple(classes))
    written = list(predictor.predict(cases, out=Path(out), result=made, window=window, mirror=mirror))
    if predictor.faults:
        texts = "\n  ".join(predictor.faults.values())
        raise PartlyDone(f"{len(predictor.faults)} of {len(cases)} images could not be segmented:\n  {texts}")
    return written


def _model(network: nn.Module, *, stride: Triple, precision: str, plan: Plan | None, world: World | None) -> Segmenter:
    if plan is None:
        return Alone(network, device=_device_of(network), precision=precision)
    if world is None:
        raise UserError("segment: a plan needs the world of its ranks; join it with lampseg.parallel.world.membership")
    if plan.choices.spatial:
        raise UserError("segment: plans of slabs are for files; use `Predictor`, or a plan of stages")
    return ParallelModel(network.eval(), plan, world=world, training=False, stride=stride)


def _device_of(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
