"""Every case of a dataset measured, in several processes; one that can't be gives its reason and stops no other."""

import os
from collections.abc import Callable, Sequence
from functools import partial

from lampseg.data.cases import Case
from lampseg.data.fingerprint.case_figures import CaseFigures, measure_case
from lampseg.errors import UserError
from lampseg.pool import map_cases

DEFAULT_JOBS = 4
Outcome = CaseFigures | str
"""What was measured; or, as text, why it could not be."""


def default_jobs() -> int:
    """The processors, but not more than 4: each process holds a volume."""
    return min(os.cpu_count() or 1, DEFAULT_JOBS)


def measure_cases(
    cases: Sequence[Case],
    *,
    classes: tuple[str, ...],
    sample: int,
    jobs: int,
    on_case: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Measures each case, in the order of the cases.

    Args:
        sample: see `measure_case`.
        jobs: processes; each holds one volume at a time.
        on_case: called after each case.

    Raises:
        UserError: a process was killed, most likely for want of memory.
    """
    work = partial(_outcome, classes=classes, sample=sample)
    return map_cases(work, cases, jobs=jobs, done=lambda *_: on_case())


def _outcome(case: Case, *, classes: tuple[str, ...], sample: int) -> Outcome:
    try:
        return measure_case(case, classes=classes, sample=sample)
    except UserError as error:
        return str(error)
    except MemoryError:
        return f"{case.image}: does not fit in memory; use fewer --jobs, or a machine with more"
