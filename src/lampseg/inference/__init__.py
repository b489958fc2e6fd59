"""Whole volumes in one pass through the pipeline, or by sliding window, written on the input's own grid."""
