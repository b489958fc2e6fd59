"""Whole volumes in one pass through the pipeline, or by sliding window, written on the input's own grid.

From Python: `segment` for arrays, `segment_files` for files, `Predictor` for files on many ranks.
"""

from lampseg.inference.api import segment, segment_files
from lampseg.inference.inputs import InputCase, cases_of
from lampseg.inference.mirror import Mirror, mirror_of
from lampseg.inference.predictor import Prediction, Predictor, Result
from lampseg.inference.probability_file import read_probabilities
from lampseg.inference.windows import SlidingWindow

__all__ = [
    "InputCase",
    "Mirror",
    "Prediction",
    "Predictor",
    "Result",
    "SlidingWindow",
    "cases_of",
    "mirror_of",
    "read_probabilities",
    "segment",
    "segment_files",
]
