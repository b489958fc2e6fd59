"""The predictor: image files in, label files out, on the grid and affine of each image."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lampseg.config import Config
from lampseg.data import GridInfo, image_to_network, labels_to_grid, read_image, write_labels
from lampseg.data.volume import file_id
from lampseg.errors import UserError
from lampseg.inference.segment import SlidingWindow, sliding_labels
from lampseg.parallel.model import ParallelModel
from lampseg.training.supervision import logits_of
from lampseg.training.validation import pad_volume, padded_shape


@dataclass(frozen=True)
class Prediction:
    """One written label file."""

    image: Path
    output: Path
    seconds: float
    """From the volume on the network's grid to its labels there: not reading, resampling and writing."""


@dataclass(frozen=True)
class _Loaded:
    """A volume on the network's grid; its voxels are on the first rank of a replica only."""

    path: Path
    array: np.ndarray | None
    info: GridInfo
    header: Any


class Predictor:
    """Segments files with a model on all ranks; its methods are called on every rank alike.

    Args:
        model: the network, split; it is set to eval mode.
        channels: of the images.
        config: of the run that trained it.
        stride: the network's total stride, to multiples of which volumes are padded.
    """

    def __init__(self, model: ParallelModel, *, config: Config, channels: int, stride: tuple[int, int, int]) -> None:
        self.model, self.config, self.channels, self.stride = model, config, channels, stride
        self._dtype = torch.float64 if config.precision == "float64" else torch.float32
        model.network.eval()

    def predict(
        self, images: Sequence[Path], *, out: Path, window: SlidingWindow | None = None
    ) -> Iterator[Prediction]:
        """Segments the images and writes `<image name>.nii.gz` into `out`; each is yielded where its output is.

        Replicas share the images. As many whole volumes as there are ranks go through the pipelines together, so
        that all have work.

        Raises:
            UserError: an image can't be read or a label file can't be written; earlier ones are complete.
        """
        group = self.model.world.size if window is None else self.model.mesh.replicas
        for first in range(0, len(images), group):
            loaded = self._load(images[first : first + group])
            labels = self._whole(loaded) if window is None else self._slide(loaded, window)
            begun = time.perf_counter()
            for item, found in zip(loaded, labels, strict=True):
                seconds = time.perf_counter() - begun
                if found is not None:
                    output = out / output_name(item.path)
                    on_input_grid = labels_to_grid(found, item.info)
                    write_labels(output, on_input_grid, item.info.input_affine, header=item.header)
                    yield Prediction(item.path, output, seconds)
                begun = time.perf_counter()

    def _load(self, paths: Sequence[Path]) -> list[_Loaded]:
        """My replica's of some images. Its first rank reads them; all learn the grids, and of a fault anywhere."""
        mesh = self.model.mesh
        mine = [paths[index] for index in mesh.spread(len(paths))]
        arrays: list[np.ndarray | None] = [None] * len(mine)
        read: list[tuple[GridInfo, Any]] = []
        fault: str | None = None
        if mesh.device == 0:
            try:
                for n, path in enumerate(mine):
                    volume = read_image((path,), voxel_size=self.config.data.voxel_size)
                    arrays[n], info = image_to_network(volume, data=self.config.data)
                    read.append((info, volume.header))
            except UserError as error:
                fault = str(error)
        told: Any = mesh.world.gather((read, fault))
        faults = [fault for _, fault in told if fault is not None]
        if faults:
            raise UserError(faults[0])
        known = told[mesh.rank_of(0)][0]
        return [_Loaded(path, array, *grid) for path, array, grid in zip(mine, arrays, known, strict=True)]

    def _whole(self, loaded: Sequence[_Loaded]) -> Iterator[np.ndarray | None]:
        shapes = [padded_shape(item.info.shape, self.stride, channels=self.channels) for item in loaded]
        found = self.model.runner.labels(
            shapes, load=lambda m: self._part(loaded[m], shapes[m]), logits=lambda output: logits_of(output)[0]
        )
        for item, labels in zip(loaded, found, strict=True):
            yield None if labels is None else self._labels(labels, item)

    def _slide(self, loaded: Sequence[_Loaded], window: SlidingWindow) -> Iterator[np.ndarray | None]:
        if any(size % step for size, step in zip(window.size, self.stride)):
            raise UserError(
                f"window: {list(window.size)} is not a multiple of the network's total stride {list(self.stride)}"
            )
        for item in loaded:
            shape = padded_shape(item.info.shape, self.stride, channels=self.channels)
            with torch.no_grad():
                labels = sliding_labels(self.model, self._padded(item, shape), window)
            yield None if labels is None else self._labels(labels, item)

    def _labels(self, padded: Tensor, item: _Loaded) -> np.ndarray:
        a, b, c = item.info.shape
        classes = padded[:a, :b, :c].cpu().numpy()
        return classes.astype(np.uint8 if classes.max(initial=0) < 256 else np.uint16)

    def _part(self, item: _Loaded, shape: tuple[int, ...]) -> Tensor:
        """What this rank needs of the network's input: all of it, or a slab that the first rank sends."""
        whole = None
        if item.array is not None:
            whole = pad_volume(item.array, shape, device=torch.device("cpu"), dtype=self._dtype)
        return self.model.runner.scatter(whole, shape, dtype=self._dtype)

    def _padded(self, item: _Loaded, shape: tuple[int, ...]) -> Tensor:
        """The volume as the network's input; zeros where it was not loaded."""
        if item.array is None:
            return torch.zeros(shape, dtype=self._dtype, device=self.model.world.device)
        return pad_volume(item.array, shape, device=self.model.world.device, dtype=self._dtype)


def output_name(image: Path) -> str:
    """`<image name>.nii.gz`; nnU-Net's channel suffix stays."""
    return file_id(image) + ".nii.gz"
