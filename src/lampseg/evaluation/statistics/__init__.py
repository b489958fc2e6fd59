"""What the figures of several cases say: intervals, and whether one run is better than another."""
