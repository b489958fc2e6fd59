"""One prediction against one truth: overlap, distances of surfaces, volumes."""
