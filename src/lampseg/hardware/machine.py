"""This machine's cores, shared by the processes of a run."""

import os


def threads_per_process(processes: int) -> int:
    """Cores of this machine that one of several processes may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)
