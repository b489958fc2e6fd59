"""lampseg: train and run 3D segmentation networks that are too large for one device, on whole scans."""

from lampseg.version import __version__

__all__ = ["__version__"]
