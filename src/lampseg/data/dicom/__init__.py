"""DICOM: series of slices -> volumes, structure sets -> label maps, folders of both -> datasets."""
