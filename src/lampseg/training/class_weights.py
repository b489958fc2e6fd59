"""Adaptive class weights for the loss, from how many voxels each class has in the training set."""

import math
from collections.abc import Sequence

from lampseg.errors import UserError


def adaptive_class_weights(voxels: Sequence[Sequence[int]], annotated: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """One weight per class, rarer classes more, with mean 1.

    With v_ic voxels of class c in case i, and only the cases where c is annotated:

        f_c = sum of v_ic over those cases / all voxels of those cases
        w_c proportional to 1 + log10(f_max / f_c)

    so a class that is ten times rarer gets one unit more. The plain inverse frequency would give an optic chiasm
    about 100,000 times the background's weight, which would then be learnt from nothing else; the logarithm keeps
    the ratio below 11 on anything smaller than 10^10 voxels, near the 1 to 2.2 of the weights that AnatomyNet's
    authors published. Dice already makes classes of any size count alike, so little is left to correct.

    A class without a single annotated voxel gets the weight of the rarest one seen: it has no term in the loss
    until it appears. `unseen_classes` names such classes, so that the user can be told.

    Args:
        voxels: per case, the number of voxels of each class, background first.
        annotated: per case and class, whether (1, True) or not (0, False) the class was drawn.

    Raises:
        UserError: no cases, no voxels, lists of different lengths, or a negative count.
    """
    frequencies = _frequencies(voxels, annotated)
    seen = [f for f in frequencies if f > 0]
    if not seen:
        raise UserError("training set: no case has a voxel of an annotated class; check the label files")
    most, rarest = max(seen), min(seen)
    raw = [1 + math.log10(most / (f if f > 0 else rarest)) for f in frequencies]
    mean = math.fsum(raw) / len(raw)
    return tuple(w / mean for w in raw)


def unseen_classes(voxels: Sequence[Sequence[int]], annotated: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The classes that no case holds an annotated voxel of: nothing can be learnt of them. Errors as above."""
    return tuple(c for c, f in enumerate(_frequencies(voxels, annotated)) if f == 0)


def _frequencies(voxels: Sequence[Sequence[int]], annotated: Sequence[Sequence[int]]) -> list[float]:
    """f_c of every class; 0 where it has no annotated voxel."""
    if len(voxels) == 0 or len(voxels) != len(annotated):
        raise UserError(
            f"training set: voxel counts of {len(voxels)} cases and annotations of {len(annotated)}; "
            "give both for every case, and at least one case"
        )
    classes = len(voxels[0])
    for i, (counts, drawn) in enumerate(zip(voxels, annotated, strict=True)):
        if len(counts) != classes or len(drawn) != classes:
            raise UserError(
                f"training set: case {i} has {len(counts)} voxel counts and {len(drawn)} annotations; "
                f"give {classes} of each, one per class"
            )
        if any(count < 0 for count in counts):
            raise UserError(f"training set: case {i} has a negative voxel count in {list(counts)}")
    frequencies = []
    for c in range(classes):
        cases = [counts for counts, drawn in zip(voxels, annotated, strict=True) if drawn[c]]
        total = sum(int(sum(counts)) for counts in cases)
        frequencies.append(sum(int(counts[c]) for counts in cases) / total if total else 0.0)
    return frequencies
