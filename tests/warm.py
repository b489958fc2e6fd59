"""Processes that begin with everything imported: forked from a server that has loaded torch, MONAI and lampseg once.

Importing takes a process seconds of the processor, more than most of what the tests have it do.
"""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

METHOD = "forkserver"
ROOT = Path(__file__).parents[1]


def context() -> BaseContext:
    """For processes as multiprocessing starts them; the environment is that of the server, the folder the caller's."""
    multiprocessing.set_forkserver_preload(["tests.warmed"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), before)))  # where the server finds the module
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return multiprocessing.get_context(METHOD)
