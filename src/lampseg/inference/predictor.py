"""The predictor: image files in, label files out, each on its image's own grid; a faulty image stops no other."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lampseg.config import DataConfig
from lampseg.data import GridInfo, image_to_network, read_image, write_labels
from lampseg.errors import UserError
from lampseg.inference.components import keep_largest
from lampseg.inference.inputs import InputCase, case_of
from lampseg.inference.labelling import Labelling, Resample
from lampseg.inference.mirror import Mirror
from lampseg.inference.model import Segmenter, Shape, Unfit
from lampseg.inference.padding import pad_volume, padded_shape
from lampseg.inference.probability_file import SUFFIX, ProbabilityFile
from lampseg.inference.scores import whole_scores
from lampseg.inference.tiles import Box, Tile
from lampseg.inference.windows import SlidingWindow, reached, window_scores
from lampseg.training.smallest import enough_voxels

PASSES = 4
"""Through a pipeline at once, for each of its devices: of 5 in the time of 4, one is spent filling and draining it."""


@dataclass(frozen=True)
class Prediction:
    """One written label file."""

    image: Path
    output: Path
    seconds: float
    """From the volume on the network's grid to its scores there: not reading, resampling and writing."""


@dataclass(frozen=True)
class Result:
    """What is made of the scores, and written."""

    classes: tuple[str, ...]
    """Names, background first."""
    resample: Resample = "logits"
    largest: tuple[int, ...] = ()
    """Classes of which the largest connected component stays."""
    probabilities: bool = False
    """Whether to write `<name>.probabilities.npz`, too."""


@dataclass(frozen=True)
class _Loaded:
    """A volume on the network's grid; its voxels are on the first rank of a replica only."""

    case: InputCase
    info: GridInfo
    header: Any
    array: npt.NDArray[np.float32] | None = field(default=None, repr=False)


class Predictor:
    """Segments files with a model on all ranks; its methods are called on every rank alike.

    Args:
        model: the network, split over ranks, or `Alone`; it is set to eval mode.
        data: how a file becomes the network's input.
        channels: of the images.
        stride: the network's total stride, to multiples of which volumes are padded.
        precision: float32, float64 or bfloat16 (mixed).
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        data: DataConfig,
        channels: int,
        stride: tuple[int, int, int],
        precision: str = "float32",
    ) -> None:
        self.model, self.data, self.channels, self.stride = model, data, channels, stride
        self._dtype = torch.float64 if precision == "float64" else torch.float32
        self.faults: dict[str, str] = {}
        """Images of the last call that could not be segmented, by case name, and why; each rank knows some."""
        model.network.eval()

    def predict(
        self,
        images: Sequence[InputCase | Path],
        *,
        out: Path,
        result: Result,
        window: SlidingWindow | None = None,
        mirror: Mirror | None = None,
        on_group: Callable[[int], None] | None = None,
    ) -> Iterator[Prediction]:
        """Segments the images and writes `<case name>.nii.gz` into `out`; each is yielded where its output is.

        Replicas share the images. In a pipeline several go through together, so that all devices have work; the next
        ones are read, and the last one is written, meanwhile. An image that can't be segmented is noted in `faults`.

        Args:
            result: what is written.
            window: None: whole volumes in one pass.
            mirror: None: volumes are not flipped.
            on_group: called on every rank when so many more images are done with, as far as this rank knows.

        Raises:
            UserError: a result can't be written, or the window does not fit the network; earlier results are complete.
        """
        self.faults = {}
        mirror = mirror or Mirror()
        if window is not None and any(size % step for size, step in zip(window.size, self.stride)):
            raise UserError(
                f"window: {list(window.size)} is not a multiple of the network's total stride {list(self.stride)}"
            )
        cases = [image if isinstance(image, InputCase) else case_of(image) for image in images]
        size = self._together(window, mirror)
        groups = [cases[first : first + size] for first in range(0, len(cases), size)]
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            reading = [reader.submit(self._read, group) for group in groups[:1]]
            pending: deque[Future[Prediction]] = deque()
            for n, group in enumerate(groups):
                loaded = self._known(group, reading.pop().result())
                reading = [reader.submit(self._read, following) for following in groups[n + 1 : n + 2]]
                for finish in self._segmented(loaded, out=out, result=result, window=window, mirror=mirror):
                    pending.append(writer.submit(finish))
                    del finish
                    if len(pending) > 1:
                        yield pending.popleft().result()
                del loaded
                if on_group is not None:
                    on_group(len(group))
            for future in pending:
                yield future.result()

    def _together(self, window: SlidingWindow | None, mirror: Mirror) -> int:
        """How many images are read and segmented together, by all replicas."""
        mesh = self.model.mesh
        if window is not None or mesh.places == 1:
            return mesh.replicas
        return mesh.replicas * -(-PASSES * mesh.places // len(mirror.flips))

    def _read(self, group: Sequence[InputCase]) -> list[_Loaded | str]:
        """My replica's of some images, or what is wrong with them; on its first rank."""
        if self.model.mesh.device > 0:
            return []
        read: list[_Loaded | str] = []
        for index in self.model.mesh.spread(len(group)):
            case = group[index]
            try:
                read.append(self._read_one(case))
            except UserError as error:
                read.append(str(error))
        return read

    def _read_one(self, case: InputCase) -> _Loaded:
        volume = read_image(case.images, voxel_size=self.data.voxel_size)
        found = len(volume.array)
        if found != self.channels:
            raise UserError(
                f"{case.images[0]}: {found} channel{'s' * (found != 1)}, but the network takes {self.channels}; give "
                "one file that holds all of them, or files CASE_0000, CASE_0001, ... of one each"
            )
        array, info = image_to_network(volume, data=self.data)
        return _Loaded(case, info, volume.header, array)

    def _known(self, group: Sequence[InputCase], read: Sequence[_Loaded | str]) -> list[_Loaded]:
        """Those of my replica that can be segmented; all its ranks learn the grids, and all ranks of the faults."""
        mesh = self.model.mesh
        grids = [item if isinstance(item, str) else (item.info, item.header) for item in read]
        told: Any = mesh.world.gather(grids) if mesh.world.size > 1 else [grids]
        for index, case in enumerate(group):
            grid = told[index % mesh.replicas * mesh.devices][index // mesh.replicas]
            if isinstance(grid, str):
                self.faults[case.name] = grid
        loaded = []
        for n, index in enumerate(mesh.spread(len(group))):
            grid = told[mesh.rank_of(0)][n]
            if not isinstance(grid, str):
                info, header = grid
                mine = read[n] if read else None
                array = mine.array if isinstance(mine, _Loaded) else None
                loaded.append(_Loaded(group[index], info, header, array))
        return loaded

    def _segmented(
        self,
        loaded: Sequence[_Loaded],
        *,
        out: Path,
        result: Result,
        window: SlidingWindow | None,
        mirror: Mirror,
    ) -> Iterator[Any]:
        """For each volume, where its output is, what is still to do: a function that writes its labels."""
        shapes = {}
        for item in loaded:
            shape = padded_shape(item.info.shape, self.stride, channels=self.channels)
            where, remedy = str(item.case.images[0]), "segment it with --window, which pads it"
            try:
                if window is None:
                    with enough_voxels(where, shape[2:], remedy=remedy):
                        self.model.runner.check(shape)
                shapes[item.case.name] = shape
            except UserError as error:  # the same on all ranks of the replica: they look at the shape alone
                self.faults[item.case.name] = str(error) if where in str(error) else f"{where}: {error}"
        good = [item for item in loaded if item.case.name in shapes]
        if window is None:
            scores = self._whole(good, [shapes[item.case.name] for item in good], mirror)
        for item in good:
            if window is not None:
                scores = self._sliding(item, reached(shapes[item.case.name], window.size), window, mirror)
            writes = self.model.yields_output
            with contextlib.ExitStack() as stack:
                file = None
                if writes and result.probabilities:
                    path = out / f"{item.case.name}{SUFFIX}"
                    file = stack.enter_context(ProbabilityFile(path, info=item.info, classes=result.classes))
                labelling = Labelling(
                    item.info,
                    classes=len(result.classes),
                    averaged=mirror.averages,
                    resample=result.resample,
                    file=file,
                )
                try:
                    seconds = self._take(labelling, scores, one=window is None)
                except Unfit as error:  # of a network in this process alone: no other rank waits
                    self._amiss(item, str(error), file)
                    continue
                if not labelling.finite:
                    fault = "the network's output is not a number (NaN); its weights may have diverged, try others"
                    self._amiss(item, fault, file)
                    continue
            if writes:
                kept = replace(item, array=None)
                yield partial(_write, kept, labelling, out=out, result=result, seconds=seconds)
        if window is None:
            assert next(scores, None) is None

    def _amiss(self, item: _Loaded, fault: str, file: ProbabilityFile | None) -> None:
        self.faults[item.case.name] = f"{item.case.images[0]}: {fault}"
        if file is not None:
            file.abandon()

    def _take(self, labelling: Labelling, scores: Iterator[Tile | None], *, one: bool) -> float:
        """Hands a volume's scores over, and says how long they took."""
        total = 0.0
        while True:
            begun = time.perf_counter()
            try:
                tile = next(scores)
            except StopIteration:
                return total
            if self.model.world.device.type == "cuda":
                torch.cuda.synchronize(self.model.world.device)
            total += time.perf_counter() - begun
            if tile is not None and self.model.mesh.sharing > 1:
                labelling.take_together(tile, mesh=self.model.mesh.together)
            elif tile is not None:
                labelling.take(tile)
            del tile
            if one:
                return total

    def _whole(self, loaded: Sequence[_Loaded], shapes: Sequence[Shape], mirror: Mirror) -> Iterator[Tile | None]:
        def load(index: int, flip: tuple[int, ...]) -> Tensor:
            whole = None
            array = loaded[index].array
            if array is not None:
                whole = pad_volume(array, shapes[index], device=torch.device("cpu"), dtype=self._dtype)
                whole = _flipped(whole, flip)
            return self.model.runner.scatter(whole, shapes[index], dtype=self._dtype)

        return whole_scores(self.model, shapes, load=load, mirror=mirror)

    def _sliding(self, item: _Loaded, shape: Shape, window: SlidingWindow, mirror: Mirror) -> Iterator[Tile]:
        def load(place: Box, flip: tuple[int, ...]) -> Tensor:
            one = (*shape[:2], *window.size)
            if item.array is None:
                return torch.zeros(one, dtype=self._dtype, device=self.model.world.device)
            device = self.model.world.device
            return _flipped(pad_volume(item.array, one, device=device, dtype=self._dtype, region=place), flip)

        return window_scores(self.model, shape, window, load=load, mirror=mirror)


def _flipped(x: Tensor, flip: Sequence[int]) -> Tensor:
    return x.flip([axis + 2 for axis in flip]) if flip else x


def _write(item: _Loaded, labelling: Labelling, *, out: Path, result: Result, seconds: float) -> Prediction:
    output = out / item.case.output
    labels = labelling.finish()
    keep_largest(labels, result.largest)
    write_labels(output, labels, item.info.input_affine, header=item.header)
    return Prediction(item.case.images[0], output, seconds)
