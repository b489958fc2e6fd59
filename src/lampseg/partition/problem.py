"""A planning problem: network, input, batch, devices and what may be chosen; solving it gives the best plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from lampseg.errors import UserError
from lampseg.hardware.device import Hardware
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss, cost_network
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Choices, DeviceLoad, Plan, Recompute
from lampseg.partition.schedule import Schedule
from lampseg.partition.search import Found, Options, counts_to_try, search
from lampseg.recording.around import Around
from lampseg.units import format_bytes

AUTO_MICRO_BATCHES = 8
"""Into how many micro-batches a mini-batch is cut at most, for any number of devices.

Their number changes what BatchNorm computes and dropout drops, and elsewhere the rounding, which RMSprop magnifies:
float32 losses on one and on several devices differed by up to 3e-3 within 20 steps when it followed the devices.
"""
MOST_ROUNDS = 5
HOPELESS = 2.5
"""A plan that by the estimate needs so many times the memory is not rehearsed: no estimate is so much too high."""

Rehearse = Callable[[CostedNetwork, Plan, MicroBatchLoss | None], tuple[DeviceLoad, ...]]


@dataclass(frozen=True)
class Problem:
    """Everything that a plan depends on."""

    network: nn.Module
    """In train mode; its parameters may be on meta, and are not changed."""
    name: str
    size: tuple[int, ...]
    """Of the input, spatial."""
    batch: int
    hardware: Hardware
    devices: int = 1
    """Or places of pipelines, if each is shared by ranks with a slab of the volumes."""
    memory: tuple[float, ...] | None = None
    """Bytes of each device; None: no limit."""
    channels: int = 1
    precision: str = "float32"
    micro_batches: int | Literal["auto", "any"] = "auto"
    replicas: int | None = None
    schedule: Schedule | None = None
    recompute: Recompute | None = None
    optimizer: float = 1.0
    """Bytes that the optimizer keeps for each byte of a trainable parameter."""
    loss: MicroBatchLoss | None = None
    rehearse: Rehearse | None = None
    """Runs a plan on fake tensors and gives the exact bytes of each device; None: the estimate is taken."""
    margin: float = 1.0
    """Memory is planned as if a device needed so many times what is predicted (learnt from a run that failed)."""
    slabs: tuple[int, int, int] = (1, 1, 1)
    """Ranks along each spatial dimension that share a place."""
    around: Callable[[tuple[int, ...]], Around] | None = None
    """What the network of such a rank runs in, for the shape of a whole micro-batch."""
    cache: dict[tuple[object, ...], CostedNetwork] = field(default_factory=dict, compare=False, repr=False)
    """Of what was recorded; shared by the problems derived from one with `replace`."""
    searched: dict[tuple[object, ...], Found] = field(default_factory=dict, compare=False, repr=False)
    """What was found; shared in the same way."""

    def costed(self, micro_batches: int) -> CostedNetwork:
        """The network, costed for one micro-batch of a step that is cut into so many."""
        samples = -(-self.batch // micro_batches)
        key = (samples, self.size, self.precision, self.hardware.source, self.loss, self.slabs)
        if key not in self.cache:
            shape = (samples, self.channels, *self.size)
            self.cache[key] = cost_network(
                self.network,
                shape=shape,
                precision=self.precision,
                hardware=self.hardware,
                optimizer=self.optimizer,
                loss=self.loss,
                name=self.name,
                around=None if self.around is None else self.around(shape),
                slabs=self.slabs,
            )
        return self.cache[key]

    def counts(self) -> tuple[int, ...]:
        """Numbers of micro-batches that may be chosen."""
        if isinstance(self.micro_batches, int):
            return (min(self.batch, self.micro_batches),)
        if self.micro_batches == "auto":
            return (min(self.batch, AUTO_MICRO_BATCHES),)
        return counts_to_try(self.batch)

    def solve(self, *, on_way: Callable[[], None] = lambda: None) -> Found:
        """The fastest plan that fits, or the one that lacks least.

        The search works with bytes that are estimated for every possible stage; the plan that it finds is rehearsed,
        which gives them exactly. If it turns out not to fit, the search is repeated with correspondingly less memory;
        if nothing fits by the estimate, with as much more as it was too high for the plan that came closest.

        Raises:
            UserError: the network can't be recorded, or cut into so many stages.
        """
        counts = self.counts()
        self._check(counts)
        options = Options(counts, self.replicas, self.schedule, self.recompute)
        memory = None if self.memory is None else tuple(limit / self.margin for limit in self.memory)
        fallback: Found | None = None
        known: dict[Choices, tuple[DeviceLoad, ...]] = {}
        relaxed = False
        for _ in range(MOST_ROUNDS):
            found = self._searched(options, memory, on_way)
            if self.memory is None:
                return replace(found, plan=self._rehearsed(found.plan))
            assert memory is not None
            each = found.plan.choices.devices
            limits = [min(self.memory[device::each]) / self.margin for device in range(each)]
            estimated = max(load.peak_bytes / limit for load, limit in zip(found.plan.devices, limits))
            plan = self._rehearsed(found.plan, known) if estimated < HOPELESS else self._with_memory(found.plan)
            over = max(load.peak_bytes / limit for load, limit in zip(plan.devices, limits))
            if over <= 1 and (found.fits or relaxed):
                return Found(plan, fits=True)
            if found.fits:
                memory = tuple(limit * min(0.99, estimated / over) for limit in memory)
                continue
            if over <= 1:  # it was made to need little, at any price in time: there may be a faster one
                fallback = Found(plan, fits=True)
            if relaxed or estimated <= over:
                break
            relaxed = True
            memory = tuple(limit * estimated / over for limit in memory)
        return fallback or Found(plan, fits=False)

    def _searched(self, options: Options, memory: tuple[float, ...] | None, on_way: Callable[[], None]) -> Found:
        of = (self.batch, self.size, self.precision, self.hardware.source, self.loss, self.slabs, self.devices)
        key = (*of, options, memory)
        if key not in self.searched:
            self.searched[key] = search(
                self.costed, devices=self.devices, options=options, memory=memory, on_way=on_way
            )
        return self.searched[key]

    def given(self, choices: Choices, *, digest: str, otherwise: Callable[[CostedNetwork], Plan] | None = None) -> Plan:
        """The plan of given choices.

        Args:
            digest: of the network that they were made for.
            otherwise: makes the plan, if it is none of stages.

        Raises:
            UserError: they are for another network, contradict each other, cut where no stage may begin, or do not
                fit the memory.
        """
        model = self.costed(choices.micro_batches)
        if digest != model.graph.digest:
            raise UserError(f"was made for another network than {self.name} (or another version of it): make it again")
        plan = self._rehearsed(plan_of(model, choices)) if otherwise is None else otherwise(model)
        for load in plan.devices:
            if load.memory_bytes is not None and load.peak_bytes * self.margin > load.memory_bytes:
                raise UserError(
                    f"does not fit: device {load.index} needs {format_bytes(load.peak_bytes)}, it has "
                    f"{format_bytes(load.memory_bytes)}"
                )
        return plan

    def _rehearsed(self, plan: Plan, known: dict[Choices, tuple[DeviceLoad, ...]] | None = None) -> Plan:
        """`known`: of choices that were rehearsed before."""
        known = {} if known is None else known
        if self.rehearse is not None and plan.choices not in known:
            known[plan.choices] = self.rehearse(self.costed(plan.micro_batches), plan, self.loss)
        return self._with_memory(replace(plan, devices=known.get(plan.choices, plan.devices)))

    def _with_memory(self, plan: Plan) -> Plan:
        limits: Sequence[float] | None = self.memory
        each = plan.choices.devices
        return replace(
            plan,
            devices=tuple(
                replace(load, memory_bytes=None if limits is None else min(limits[load.index :: each]))
                for load in plan.devices
            ),
        )

    def _check(self, counts: tuple[int, ...]) -> None:
        if self.replicas is not None:
            if self.devices % self.replicas:
                raise UserError(
                    f"parallel.replicas: {self.replicas} copies of the network can't share {self.devices} device(s) "
                    "evenly: give a divisor"
                )
            if self.replicas > max(counts):
                raise UserError(
                    f"parallel.replicas: {self.replicas} copies of the network need as many micro-batches, a step of "
                    f"{self.batch} sample(s) has {max(counts)}: use a larger batch, fewer replicas, or mode: pipeline"
                )
        count = self.costed(counts[0]).costs.count
        most = self.devices // (self.replicas or max(r for r in range(1, max(counts) + 1) if self.devices % r == 0))
        if most > count:
            raise UserError(
                f"{self.devices} devices: {self.name} can be cut into at most {count} stages for an input of size "
                f"{list(self.size)}: ask for fewer devices"
            )
