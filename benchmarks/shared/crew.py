"""Processes that run steps when told: two of one thread, which form a world, and one of two threads."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lampseg.host_allocator import freed_memory_kept
from lampseg.parallel.world import World, membership

Make = Callable[[World | None], Callable[[], dict[str, float]]]
"""Builds a step in a process; the world is None in a process of its own."""


class Crew:
    """The two processes, or the one."""

    def __init__(self, size: int, *, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(OMP_WAIT_POLICY="passive", OMP_NUM_THREADS=str(threads))
        context = mp.get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        self._pipes = [mine for mine, _ in pipes]
        self.processes = [
            context.Process(target=_main, args=(rank, size, port, threads, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def ask(self, message: tuple[Any, ...]) -> list[Any]:
        """Every process's answer."""
        for pipe in self._pipes:
            pipe.send(message)
        answers = [self._receive(pipe) for pipe in self._pipes]
        return answers

    def _receive(self, pipe: Connection) -> Any:
        while not pipe.poll(1.0):
            if any(process.exitcode is not None for process in self.processes):
                raise RuntimeError("a process of the benchmark has ended; its message is above")
        return pipe.recv()

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a function returns in every process."""
        return self.ask(("call", function, arguments))

    def prepare(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        """Builds `make(*arguments)`, or with `world=` where there is one, under a name."""
        self.ask(("prepare", name, make, arguments))

    def run(self, name: str) -> tuple[float, list[dict[str, float]]]:
        """Seconds of one step, from when all begin to when all have ended; and what each says of itself."""
        answers = self.ask(("run", name))
        return max(seconds for seconds, _ in answers), [told for _, told in answers]

    def forget(self) -> None:
        """Lets go of what was prepared."""
        self.ask(("forget",))

    def end(self) -> None:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # its process has ended
                pipe.send(("end",))
        for process in self.processes:
            process.join(30)
            process.kill()


@contextmanager
def crews(sizes: Sequence[tuple[int, int]]) -> Iterator[list[Crew]]:
    """Crews of (processes, threads of each)."""
    made = [Crew(size, threads=threads) for size, threads in sizes]
    try:
        yield made
    finally:
        for crew in made:
            crew.end()


def _main(rank: int, size: int, port: int, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if size == 1:
        with freed_memory_kept():
            _serve(None, pipe)
        return
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with membership(device="cpu", timeout=600) as world:
        _serve(world, pipe)


def _serve(world: World | None, pipe: Connection) -> None:
    steps: dict[str, Callable[[], dict[str, float]]] = {}
    while True:
        verb, *rest = pipe.recv()
        if verb == "end":
            return
        if verb == "forget":
            steps.clear()
            pipe.send(None)
        elif verb == "call":
            pipe.send(rest[0](*rest[1]))
        elif verb == "prepare":
            name, make, arguments = rest
            steps[name] = make(*arguments) if world is None else make(*arguments, world=world)
            pipe.send(None)
        else:
            pipe.send(_timed(steps[rest[0]], world))


def _timed(step: Callable[[], dict[str, float]], world: World | None) -> tuple[float, dict[str, float]]:
    if world is not None:
        dist.barrier(group=world.control)
    begun = time.perf_counter()
    told = step()
    return time.perf_counter() - begun, told
