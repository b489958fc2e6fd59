"""The page about a run: one self-contained file, with figures, the worst results and a viewer."""
