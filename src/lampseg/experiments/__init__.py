"""The paper's experiments: what they are, what they cost, and their tables filled with our figures."""

from lampseg.experiments.definition import STUDIES, Experiment, Row, Study, study

__all__ = ["STUDIES", "Experiment", "Row", "Study", "study"]
