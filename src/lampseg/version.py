"""The version of lampseg, read by the package metadata and written into every run folder."""

__version__ = "0.1.0"
