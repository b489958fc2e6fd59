"""A folder on disk -> cases -> checked volumes -> the network's grid -> patches or whole volumes, and back."""

from lampseg.data.case_files import image_geometry, read_image, read_truth
from lampseg.data.dataset import Case, Dataset, read_dataset, split_training
from lampseg.data.grid import GridInfo, image_to_network, labels_to_grid
from lampseg.data.phantom import PhantomScan, phantom_scan, write_phantom
from lampseg.data.preprocess import PreparedCase, prepare
from lampseg.data.sampling import Draw, Sampler
from lampseg.data.volume import Volume, read_label, read_volume, write_labels

__all__ = [
    "Case",
    "Dataset",
    "Draw",
    "GridInfo",
    "PhantomScan",
    "PreparedCase",
    "Sampler",
    "Volume",
    "image_geometry",
    "image_to_network",
    "labels_to_grid",
    "phantom_scan",
    "prepare",
    "read_dataset",
    "read_image",
    "read_label",
    "read_truth",
    "read_volume",
    "split_training",
    "write_labels",
    "write_phantom",
]
