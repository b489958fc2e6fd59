"""A folder on disk -> cases -> checked volumes -> the network's grid -> patches or whole volumes, and back."""

from lampseg.data.boxes import Draw
from lampseg.data.case_files import check_channels, image_geometry, read_image, read_truth, truth_affine, truths_of
from lampseg.data.cases import Case, Dataset
from lampseg.data.dataset import dataset_of, read_dataset
from lampseg.data.grid import GridInfo, image_to_network, labels_to_grid
from lampseg.data.phantom.write import PhantomScan, phantom_scan, write_phantom
from lampseg.data.preprocess import PreparedCase, prepare
from lampseg.data.sampling import Sampler
from lampseg.data.split import split_training
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
    "check_channels",
    "dataset_of",
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
    "truth_affine",
    "truths_of",
    "write_labels",
    "write_phantom",
]
