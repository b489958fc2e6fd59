"""Which modules run again on slabs, by memory: none if everything fits, else those that take least time."""

from collections.abc import Sequence
from dataclasses import replace

from lampseg.parallel.fake_state import fake_state
from lampseg.parallel.spatial.blocks import Blocks
from lampseg.parallel.spatial.forecast import (
    Rehearsed,
    fullest,
    hold_anew,
    rehearsal,
    slab_plan,
    traffic_so_far,
)
from lampseg.parallel.spatial.meter import Meter
from lampseg.parallel.whole_network import kernel_seconds
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss
from lampseg.partition.plan import Choices, Plan
from lampseg.partition.stretches import leanest, quickest

NEAR = 1.03
"""Choices that by the sum of their parts need so many times the memory are rehearsed, too: they may fit."""
HOPELESS = 1.1
"""Where the best choice by the sum of its parts needs so many times the memory, none is rehearsed."""
ROUNDS = 10


class Recompute:
    """The choices of modules that run again, for one way to cut volumes.

    What is considered: any set of the network's modules of which none contains another, each called once in a forward
    pass, keeping more than it returns and writing to none of its inputs (see `blocks`). Of these the set that takes
    least time is found exactly, by what each module takes on the fullest slab. What it needs together is then
    rehearsed, to the byte; the next one is taken if it does not fit.

    Args:
        model: the network costed for one micro-batch of whole volumes.
        choices: with slabs; which modules run again is left open.
        stride: the network's total down-sampling along each spatial dimension.
        known: slabs that were rehearsed before.
    """

    def __init__(
        self,
        model: CostedNetwork,
        choices: Choices,
        *,
        stride: Sequence[int],
        loss: MicroBatchLoss | None = None,
        known: Rehearsed | None = None,
    ) -> None:
        self.model, self.stride, self.loss = model, stride, loss
        self.choices = replace(choices, recomputed=())
        self.known: Rehearsed = {} if known is None else known
        self.blocks = Blocks(self._measured, [name for name, _ in model.network.named_modules() if name])

    def least_memory(self) -> Choices:
        """With those modules that make the fullest rank need least."""
        return self._with(leanest(self.blocks.leanest(), positions=self.blocks.positions).modules)

    def hopeless(self, memory: Sequence[float], *, margin: float = 1.0) -> bool:
        """Whether no choice comes so near to fitting that it would have to be rehearsed to know."""
        room, _ = self._room(memory, margin)
        return self.blocks.least_peak() > room * HOPELESS

    def least_lack(self, memory: Sequence[float], *, margin: float = 1.0) -> float:
        """How many times its memory the fullest device needs at least, by the sum of the parts of any choice."""
        _, rest = self._room(memory, margin)
        return (rest + self.blocks.least_peak()) * margin / min(memory)

    def fitting(self, memory: Sequence[float], *, margin: float = 1.0, exactly: bool = True) -> Plan | None:
        """The plan that runs least again, of those that fit; None if none does.

        Args:
            memory: bytes of each process.
            margin: memory is taken as if so many times what is predicted were needed.
            exactly: rehearse every kind of slab; else the fullest only.
        """
        whole = self.plan(self.choices, memory, exactly=False)
        if _over(whole, margin) <= 1 and not exactly:
            return whole
        room, rest = self._room(memory, margin)
        limit, misjudged = room * NEAR, 0.0
        stretches = self.blocks.within(limit)
        for number in range(ROUNDS):
            way = quickest(stretches, positions=self.blocks.positions, limit=limit)
            if way is None:
                return None
            choices = self._with(way.modules)
            plan = self.plan(choices, memory, exactly=False)
            if exactly and _over(plan, margin) <= 1:
                plan = self.plan(choices, memory, exactly=True)
            if _over(plan, margin) <= 1:
                return plan
            misjudged = max(misjudged, max(load.peak_bytes for load in plan.devices) - rest - way.peak)
            limit = way.peak - 1
            if number >= ROUNDS // 2:  # there are many of nearly the same peak
                limit = min(limit, room - misjudged)
        return None

    def _with(self, modules: Sequence[str]) -> Choices:
        return replace(self.choices, recomputed=tuple(modules))

    def _room(self, memory: Sequence[float], margin: float) -> tuple[float, float]:
        """Bytes on the device that has least for what a choice has an influence on; and how many there are besides."""
        whole = self.plan(self.choices, memory, exactly=False)
        live = max(load.activation_bytes + load.temporary_bytes + load.gradient_bytes for load in whole.devices)
        rest = max(load.peak_bytes for load in whole.devices) - live
        return min(memory) / margin - rest, rest

    def plan(self, choices: Choices, memory: Sequence[float] | None, *, exactly: bool) -> Plan:
        """Of given choices; arguments as of `fitting`."""
        return slab_plan(
            self.model,
            choices,
            stride=self.stride,
            loss=self.loss,
            memory=memory,
            roughly=not exactly,
            known=self.known,
        )

    def _measured(self, again: Sequence[str], watched: Sequence[str], early: bool) -> Meter:
        model, slabs = self.model, self.choices.slabs[: len(self.model.graph.input.shape) - 2]
        where = fullest(slabs, shape=model.graph.input.shape, stride=self.stride)
        with fake_state(model.network) as fake:
            hold_anew(model, fake, self.choices)
            meter = Meter(
                rehearsal(model, slabs, where, stride=self.stride, loss=self.loss, recomputed=again),
                model.network,
                watched,
                seconds=lambda kernel: kernel_seconds(model, [kernel]),
                sent=lambda of: traffic_so_far(of.spatial, model.hardware)[0],
                early=early,
            )
            meter.measure(fake)
        return meter


def _over(plan: Plan, margin: float) -> float:
    """How many times its memory the fullest device needs."""
    return max(load.peak_bytes * margin / (load.memory_bytes or float("inf")) for load in plan.devices)
