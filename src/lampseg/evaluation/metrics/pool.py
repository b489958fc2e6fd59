"""Cases scored in several processes at the same time."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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

    The first fault ends it; tasks that have not begun then are not begun.

    Args:
        work: a function of a module, so that another process finds it.
        done: called with how many are done, and of how many.

    Raises:
        UserError: as `work`; fewer jobs than one; a process was killed.
    """
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} is no number of processes; give 1 or more")
    tell = done or (lambda *_: None)
    if jobs == 1 or len(tasks) < 2:
        results = []
        for count, task in enumerate(tasks, start=1):
            results.append(work(task))
            tell(count, len(tasks))
        return results
    # Spawned, not forked: a fork of a process with threads (torch has them) may wait forever.
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(work, task) for task in tasks]
        for count, future in enumerate(as_completed(futures), start=1):
            future.result()
            tell(count, len(tasks))
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise UserError(
            "--jobs: a process was killed, perhaps for want of memory; try again with fewer jobs. A script "
            'that calls `evaluate` must guard its start by `if __name__ == "__main__":`'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
