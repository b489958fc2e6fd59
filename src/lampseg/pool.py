"""Cases worked on in several processes: no more in memory at a time than there are processes, in the order given."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lampseg.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_cases(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    jobs: int,
    done: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """`work` of every task, in order; by one job in this process, by more in as many new ones with one task each.

    The first fault ends it; tasks that have not begun then are not begun. Ctrl-C ends the processes, too.

    Args:
        work: a function of a module, so that another process finds it.
        done: called with how many are done, and of how many.

    Raises:
        UserError: as `work`; fewer jobs than one; a process was killed.
    """
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} is no number of processes; give 1 or more")
    tell = done or (lambda *_: None)
    jobs = min(jobs, len(tasks))
    found: dict[int, Result] = {}
    if jobs <= 1:
        for index, task in enumerate(tasks):
            found[index] = work(task)
            tell(len(found), len(tasks))
        return list(found.values())
    waiting = iter(enumerate(tasks))
    running: dict[Future[Result], int] = {}
    before = set(multiprocessing.active_children())
    # Spawned, not forked: a fork of a process with threads (torch has them) may wait forever.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        while len(found) < len(tasks):
            while len(running) < jobs and (following := next(waiting, None)) is not None:
                with _interrupts_ignored():  # processes start here, and inherit that
                    running[pool.submit(work, following[1])] = following[0]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                found[running.pop(future)] = future.result()
                tell(len(found), len(tasks))
    except BrokenProcessPool as error:
        raise UserError(
            f"--jobs: a process was killed, most likely for want of memory; use --jobs {max(1, jobs // 2)}. A script "
            'that calls this with several jobs must guard its start by `if __name__ == "__main__":`'
        ) from error
    except KeyboardInterrupt:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[index] for index in range(len(tasks))]


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
