"""One module for each kind of file that holds a volume: voxels and where they lie in space."""
