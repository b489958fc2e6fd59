"""Takes a volume's scores part by part, and has its labels on the input's grid (and its probabilities) at the end."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lampseg.data.back_to_grid import labels_in, lines_of, region_of
from lampseg.data.grid import GridInfo, labels_to_grid
from lampseg.inference.probability_file import PLANES, ProbabilityFile
from lampseg.inference.scores import probabilities
from lampseg.inference.tiles import Box, Tile, exchange, overlap, read, sizes, whole
from lampseg.parallel.mesh import Mesh

Resample = Literal["logits", "labels"]
CPU = torch.device("cpu")


class Labelling:
    """The labels of one volume in the making.

    Args:
        info: the network's grid and the input's.
        classes: how many there are.
        averaged: whether scores are probabilities already.
        resample: logits: scores are interpolated to the input's grid, then the class is chosen; labels: the class is
            chosen on the network's grid, then the nearest voxel's is taken. Where the two grids' axes are not parallel
            (a sheared affine, resampled) it is always labels.
        file: for probabilities, opened, in the process that has the labels.
    """

    def __init__(
        self,
        info: GridInfo,
        *,
        classes: int,
        averaged: bool,
        resample: Resample = "logits",
        file: ProbabilityFile | None = None,
    ) -> None:
        self.info, self.averaged, self.file = info, averaged, file
        self.lines = lines_of(info) if resample == "logits" else None
        self.dtype = np.dtype(np.uint8 if classes <= 256 else np.int32)
        self.finite = True
        """Whether no score so far was NaN."""
        self._array: npt.NDArray[Any] | None = None
        self._last: Tile | None = None

    def take(self, tile: Tile) -> None:
        """Takes planes of whole width, in order along X; in a process that has a volume's output."""
        tile = self._seen(tile)
        if 0 in tile.values.shape:
            return
        if self.file is not None:
            self.file.add(self._probabilities(tile.values), tile.box[0].start)
        if self.lines is None:
            self._labels()[tile.box] = tile.values.argmax(0).cpu().numpy()
            return
        # Between two parts lie voxels that need the last plane of the one and the first of the other.
        tiles = [tile] if self._last is None else [self._last, tile]
        box = (slice(tiles[0].box[0].start, tile.box[0].stop), *tile.box[1:])
        region = region_of(self.lines, box)
        labels_in(region, self.lines, lambda part: read(tiles, part), out=self._labels()[region])
        last = tile.box[0].stop - 1
        self._last = Tile(tile.values[:, -1:].clone(), (slice(last, last + 1), *tile.box[1:]))

    def take_together(self, tile: Tile, *, mesh: Mesh) -> None:
        """Takes the parts of a replica's ranks, on all of them alike; the first has the labels.

        Each rank finds the labels of its own part, with one more plane from its neighbours.
        """
        tile = self._seen(tile)
        self.finite = all(mesh.gather(self.finite))
        self._gather_probabilities(tile, mesh)
        if self.lines is None:
            region, found = tile.box, tile.values.argmax(0).to(torch.uint8 if self.dtype == np.uint8 else torch.int32)
        else:
            reach = [slice(part.start, min(part.stop + 1, size)) for part, size in zip(tile.box, self.info.shape)]
            around: Box = (reach[0], reach[1], reach[2])
            tiles = exchange(tile, around, mesh=mesh, device=tile.values.device)
            region = region_of(self.lines, around)
            mine = np.empty(sizes(region), self.dtype)
            found = torch.from_numpy(labels_in(region, self.lines, lambda part: read(tiles, part), out=mine))
            del tiles
        want = whole(self._shape) if mesh.device == 0 else None
        for part in exchange(Tile(found[None].cpu(), region), want, mesh=mesh, device=CPU):
            self._labels()[part.box] = part.values[0].numpy()

    def finish(self) -> npt.NDArray[Any]:
        """The labels on the input's grid."""
        self._last = None
        assert self._array is not None
        return self._array if self.lines is not None else labels_to_grid(self._array, self.info)

    def _seen(self, tile: Tile) -> Tile:
        tile = tile.cropped(self.info.shape)
        # Class by class: of all at once, the answers would take a quarter of the scores' memory.
        self.finite = self.finite and not any(bool(scores.isnan().any()) for scores in tile.values)
        return tile

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Of the grid on which classes are chosen."""
        return self.info.shape if self.lines is None else self.info.input_shape

    def _labels(self) -> npt.NDArray[Any]:
        if self._array is None:
            self._array = np.zeros(self._shape, self.dtype)
        return self._array

    def _probabilities(self, scores: Tensor) -> Tensor:
        return scores if self.averaged else probabilities(scores)

    def _gather_probabilities(self, tile: Tile, mesh: Mesh) -> None:
        """All ranks' planes go to the first, which writes them, a few at a time."""
        wanted = any(mesh.gather(self.file is not None))
        for first in range(0, self.info.shape[0] if wanted else 0, PLANES):
            x, y, z = whole(self.info.shape)
            planes: Box = (slice(first, min(first + PLANES, x.stop)), y, z)
            inside = overlap(tile.box, planes)
            mine = Tile(read([tile], inside), inside)
            tiles = exchange(mine, planes if self.file is not None else None, mesh=mesh, device=CPU)
            if self.file is not None:
                self.file.add(self._probabilities(read(tiles, planes).cpu()), first)
