"""Cases measured in several processes: no more at a time than there are processes, in the order of the cases."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from lampseg.data.cases import Case
from lampseg.data.fingerprint.case_figures import CaseFigures, measure_case
from lampseg.errors import UserError

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
    """Measures each case; those that can't be read give the reason. The order of the outcomes is that of the cases.

    Args:
        sample: see `measure_case`.
        jobs: processes; each holds one volume at a time.
        on_case: called after each case.

    Raises:
        UserError: a process was killed, most likely for want of memory.
    """
    task = partial(_outcome, classes=classes, sample=sample)
    jobs = min(jobs, len(cases))
    if jobs <= 1:
        outcomes = []
        for case in cases:
            outcomes.append(task(case))
            on_case()
        return outcomes
    found: dict[int, Outcome] = {}
    waiting = iter(enumerate(cases))
    running: dict[Future[Outcome], int] = {}
    # Not forked: torch's threads, if there are any, would not survive it.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    try:
        while len(found) < len(cases):
            while len(running) < jobs and (following := next(waiting, None)) is not None:
                with _interrupts_ignored():  # processes start here, and inherit that
                    running[pool.submit(task, following[1])] = following[0]
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                found[running.pop(done)] = done.result()
                on_case()
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that measured a case was killed, most likely for want of memory; use --jobs {max(1, jobs // 2)}"
        ) from error
    except KeyboardInterrupt:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[index] for index in range(len(cases))]


def _outcome(case: Case, *, classes: tuple[str, ...], sample: int) -> Outcome:
    try:
        return measure_case(case, classes=classes, sample=sample)
    except UserError as error:
        return str(error)
    except MemoryError:
        return f"{case.image}: does not fit in memory; use fewer --jobs, or a machine with more"


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: the first one ends the others, which need not say that they end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
