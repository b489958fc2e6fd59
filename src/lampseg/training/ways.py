"""Ways: by which kinds of plans a configuration's questions are answered: stages, slabs or tiles."""

from dataclasses import replace
from typing import Literal

from lampseg.partition.problem import Problem
from lampseg.partition.questions import Change, Ways
from lampseg.partition.search import Found
from lampseg.training.plans_in_tiles import in_tiles, or_in_tiles
from lampseg.training.plans_on_slabs import in_slabs, mixed
from lampseg.training.subject import Subject


def ways_of(subject: Subject) -> Ways:
    """For patches and numbers of devices that are asked for, and for what would have to change."""
    parallel = subject.config.parallel
    alone = subject.devices.count == 1
    thinner = (
        () if parallel.tile == "auto" else (Change("parallel.tile: auto", lambda problem: tiled(problem, "auto")),)
    )

    def tiled(problem: Problem, tile: int | Literal["auto"] = parallel.tile) -> Found:
        return in_tiles(replace(problem, recompute=None), tile=tile, tried=1)  # tiles recompute

    if parallel.mode == "tiled":
        return Ways(tiled, changes=thinner, elsewhere=" with parallel.mode: auto", recomputes=False)
    if parallel.mode != "spatial" and parallel.slabs != "auto":

        def on_slabs(problem: Problem) -> Found:
            return mixed(subject, problem)

        return Ways(on_slabs, several=on_slabs)
    change = "parallel.mode: tiled"
    if parallel.recompute not in ("auto", "none"):
        change += " with parallel.recompute: auto"
    in_other_mode = (Change(change, tiled),) if alone else ()
    if parallel.mode == "spatial":

        def shared(problem: Problem) -> Found:
            return problem.solve() if problem.devices == 1 else in_slabs(subject, problem, roughly=True)

        return Ways(shared, several=shared, changes=in_other_mode)
    if parallel.mode == "auto" and alone:

        def either(problem: Problem) -> Found:
            return or_in_tiles(problem, problem.solve(), tile=parallel.tile)

        return Ways(either, changes=thinner if parallel.recompute == "auto" else in_other_mode)
    return Ways(changes=in_other_mode)
