"""The workers of a command as warm processes (`tests.warm`); torch elastic starts, watches and ends them as ever.

How they begin otherwise, as `python -m lampseg`, is seen by the tests that run the command in a process of its own.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

from torch.distributed.launcher import api

from lampseg.cli import main
from tests import warm

COMMAND = ("-u", "-m", "lampseg")


def elastic_launch(config: api.LaunchConfig, entrypoint: str) -> Callable[..., Any]:
    """In place of torch's, for `python -u -m lampseg ARGUMENTS`."""
    warm.context()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)  # a worker that fails says it itself
    launched = api.elastic_launch(dataclasses.replace(config, start_method=warm.METHOD), _work)

    def start(*arguments: str) -> Any:
        assert arguments[: len(COMMAND)] == COMMAND, f"{entrypoint} {arguments} is not the command"
        return launched(Inherited(), *arguments[len(COMMAND) :])

    return start


class Inherited:
    """What a child has of its parent, and a child of the server has not: the environment, standard output and error."""

    def __reduce__(self) -> Any:
        return _inherit, (dict(os.environ), DupFd(1), DupFd(2))


def _inherit(environment: dict[str, str], *outputs: Any) -> None:
    os.environ.update(environment)
    del os.environ["LAMPSEG_LAUNCHER"]  # this process is a child of the server, not of the launcher
    for number, output in enumerate(outputs, start=1):
        os.dup2(output.detach(), number)


def _work(_inherited: None, *arguments: str) -> None:
    """What one worker does; torch elastic has added to its environment."""
    main(arguments)
