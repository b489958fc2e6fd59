"""The Plan: how one network is split and run, and what that is predicted to take. Frozen, versioned, editable JSON."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lampseg.errors import UserError
from lampseg.partition.schedule import SCHEDULES, Pace, Schedule, Timetable, check_stages, timetable

VERSION = 2

Recompute = Literal["none", "all_but_last", "all"]
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)


@dataclass(frozen=True)
class Choices:
    """What is decided; everything else in a plan follows from it and may be computed anew."""

    devices: int
    """Places of the pipeline in one replica: they share the network. Each is one device, or with slabs several."""
    replicas: int
    """Copies of the network that share the micro-batches of a step; replicas x devices x slabs processes run."""
    micro_batches: int
    """Of a step, over all replicas."""
    schedule: Schedule
    cuts: tuple[int, ...]
    """The operations at which stages 1, 2, ... begin."""
    recompute: tuple[Recompute, ...]
    """Of each stage: run its forward again instead of keeping its activations; for which micro-batches."""
    limit: int | None = None
    """Micro-batches in flight in one replica at most (interleaved and v); None: as many as the schedule wants."""
    slabs: tuple[int, ...] = (1, 1, 1)
    """Ranks along each spatial dimension that cut every volume between them (spatial parallelism), and run the whole
    network, or a stage of it, on their slabs. All 1: none do."""
    recomputed: tuple[str, ...] = ()
    """With slabs and one stage: the modules, by name, that keep their inputs only and run their forward again in the
    backward."""
    tile: int = 0
    """Planes of the network's input in a tile, where one device runs the network tile by tile; 0: it does not."""

    @property
    def spatial(self) -> bool:
        """Whether volumes are cut into slabs."""
        return self.sharing > 1

    @property
    def sharing(self) -> int:
        """Ranks that cut one volume between them."""
        return math.prod(self.slabs)

    @property
    def processes(self) -> int:
        """That run."""
        return self.replicas * self.devices * self.sharing

    @property
    def stages(self) -> int:
        return len(self.cuts) + 1

    @property
    def share(self) -> int:
        """Micro-batches of the replica that has most."""
        return -(-self.micro_batches // self.replicas)

    @property
    def fingerprint(self) -> str:
        """Tells what was measured with these choices from what was measured with others."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:12]

    def runs_again(self, stage: int, micro_batch: int, count: int) -> bool:
        """Whether a micro-batch (of so many in its replica) runs through a stage (again) just before its backward.

        The last stage puts off every forward to that moment, at no cost, so that its micro-batches stay in order
        (BatchNorm's running statistics depend on it).
        """
        recompute = self.recompute[stage]
        if recompute == "all_but_last":
            return micro_batch < count - 1 or stage == self.stages - 1
        return recompute == "all"

    def check(self) -> None:
        """Raises UserError if these choices contradict each other; the message names the field."""
        for name, value in (
            ("devices", self.devices),
            ("replicas", self.replicas),
            ("micro_batches", self.micro_batches),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"plan: choices.{name} is {value!r}; give a whole number above 0")
        if not 1 <= len(self.slabs) <= 3 or not all(
            isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in self.slabs
        ):
            raise UserError(
                f"plan: choices.slabs is {list(self.slabs)!r}; give the ranks along each axis, as [2, 1, 1]"
            )
        if self.spatial and self.devices == 1 < self.stages:
            raise UserError(
                f"plan: {self.sharing} slabs and {self.stages} stages on each device: a device with the whole network "
                "has one stage; leave out the cuts, or raise choices.devices"
            )
        self._check_recomputed()
        if not isinstance(self.tile, int) or isinstance(self.tile, bool) or self.tile < 0:
            raise UserError(f"plan: choices.tile is {self.tile!r}; give the planes of a tile, or 0 for none")
        if self.tile and (self.processes > 1 or self.stages > 1 or set(self.recompute) != {"none"}):
            raise UserError(
                f"plan: choices.tile is {self.tile}: tiles are for one device and one stage, which recompute within "
                "them; set choices.tile to 0, or leave out the other devices, the cuts and recompute"
            )
        if self.limit is not None and (not isinstance(self.limit, int) or self.limit < 1):
            raise UserError(f"plan: choices.limit is {self.limit!r}; give a whole number above 0, or null for no limit")
        if self.schedule not in SCHEDULES:
            raise UserError(f"plan: choices.schedule is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if not all(isinstance(cut, int) and not isinstance(cut, bool) for cut in self.cuts):
            raise UserError(f"plan: choices.cuts is {list(self.cuts)}; give numbers of operations")
        if wrong := [mode for mode in self.recompute if mode not in RECOMPUTE]:
            raise UserError(f"plan: choices.recompute has {wrong[0]!r}; choose of {', '.join(RECOMPUTE)}")
        if len(self.recompute) != self.stages:
            raise UserError(
                f"plan: choices.recompute has {len(self.recompute)} entries for the {self.stages} stages that "
                f"{len(self.cuts)} cuts make; give one each"
            )
        if self.replicas > self.micro_batches:
            raise UserError(
                f"plan: {self.replicas} replicas share {self.micro_batches} micro-batch(es): use at most as many "
                "replicas as micro-batches"
            )
        check_stages(self.schedule, stages=self.stages, devices=self.devices)

    def _check_recomputed(self) -> None:
        names = self.recomputed
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise UserError(f"plan: choices.recomputed is {list(names)!r}; give names of modules, each once")
        if names and (not self.spatial or self.devices > 1):
            raise UserError(
                f"plan: choices.recomputed names {names[0]!r}, but the network is not whole on slabs of a volume: "
                "stages are run again by choices.recompute; leave choices.recomputed empty"
            )
        if self.spatial and self.devices == 1 and any(mode == "all" for mode in self.recompute):
            raise UserError(
                "plan: choices.recompute is for stages of the network; with slabs, name the modules to run again in "
                "choices.recomputed"
            )


@dataclass(frozen=True)
class Stage:
    """A run of consecutive operations on one device; bytes and seconds are those of one micro-batch."""

    index: int
    device: int
    first: int
    """Number of its first operation."""
    last: int
    """Number after its last operation."""
    begins: str
    """Its first operation that computes, in words: `function @ module`."""
    modules: tuple[str, ...]
    """The modules whose operations it runs, in order."""
    recompute: Recompute
    parameters: int
    parameter_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept from forward to backward, for one micro-batch: what autograd saves; with recompute, what was received."""
    in_flight: int
    """Micro-batches between forward and backward, at most."""
    receive_bytes: int
    """Received from other devices for one micro-batch's forward (backward returns as much)."""
    send_bytes: int
    extra_bytes: int
    """At most alive besides kept activations: results, gradients under way, temporaries, what recompute keeps."""
    flops: float
    """Forward and backward of one micro-batch."""
    forward_seconds: float
    backward_seconds: float
    """With the forward that is run again, if it is."""


@dataclass(frozen=True)
class DeviceLoad:
    """What one device of a replica is predicted to hold and to do in one step."""

    index: int
    memory_bytes: float | None
    """What it has; None: not known."""
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Of all micro-batches in flight."""
    boundary_bytes: int
    """Buffers of values and gradients that arrive or leave."""
    temporary_bytes: int
    """Results, gradients under way, what recompute runs again: at most alive beside the activations."""
    library_bytes: int
    """What libraries take beside the tensors: convolution workspaces, the CUDA context."""
    peak_bytes: int
    """All of it."""
    busy_seconds: float

    @property
    def tensor_bytes(self) -> int:
        """The peak of the tensors alone: what PyTorch counts as allocated."""
        return self.peak_bytes - self.library_bytes

    def parts(self) -> dict[str, int]:
        """The peak's parts in bytes, by name."""
        return {
            "parameters": self.parameter_bytes,
            "gradients": self.gradient_bytes,
            "optimizer": self.optimizer_bytes,
            "activations": self.activation_bytes,
            "boundary": self.boundary_bytes,
            "temporary": self.temporary_bytes,
            "libraries": self.library_bytes,
        }


@dataclass(frozen=True)
class Link:
    """Values that one stage sends to another, for one micro-batch's forward."""

    source: int
    target: int
    values: int
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class Alternative:
    """Another way that was considered."""

    label: str
    """Such as `2 replicas x 2 devices, 1f1b, 4 micro-batches, recompute none`."""
    step_seconds: float | None
    """None: it can't run."""
    peak_bytes: float | None
    """Of its fullest device."""
    verdict: str
    """Why it was not chosen."""


@dataclass(frozen=True)
class Plan:
    """How one network runs on one input shape."""

    network: str
    input_shape: tuple[int, ...]
    """Of one micro-batch, (N, C, *spatial)."""
    precision: str
    operations: int
    digest: str
    """Of the sequence of operations: a plan is for one network."""
    hardware: str
    """Whose speeds the times are predicted with."""
    choices: Choices
    stages: tuple[Stage, ...]
    devices: tuple[DeviceLoad, ...]
    links: tuple[Link, ...]
    step_seconds: float
    """Forward, backward, gradient sum over the replicas and optimizer, of one step."""
    bubble: float
    """Fraction of the devices' time in the pipeline in which they wait."""
    alternatives: tuple[Alternative, ...] = ()
    version: int = VERSION

    @property
    def cuts(self) -> tuple[int, ...]:
        return self.choices.cuts

    @property
    def micro_batches(self) -> int:
        return self.choices.micro_batches

    @property
    def schedule(self) -> Schedule:
        return self.choices.schedule

    @property
    def peak_bytes(self) -> int:
        """Of the fullest device."""
        return max(device.peak_bytes for device in self.devices)

    @property
    def pace(self) -> Pace:
        """The stages' times and the messages between them."""
        return Pace(
            tuple(stage.forward_seconds for stage in self.stages),
            tuple(stage.backward_seconds for stage in self.stages),
            tuple((link.source, link.target, link.seconds) for link in self.links),
            tuple(stage.forward_seconds if stage.recompute != "none" else 0.0 for stage in self.stages),
        )

    def timetable(self, micro_batches: int | None = None) -> Timetable:
        """Of one replica, with so many micro-batches (default: its share of the plan's)."""
        return timetable(
            self.choices.schedule,
            devices=self.choices.devices,
            micro_batches=self.choices.share if micro_batches is None else micro_batches,
            pace=self.pace,
            limit=self.choices.limit,
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_dict(tree: Mapping[str, Any]) -> "Plan":
        """Reads what `to_dict` wrote.

        Raises:
            UserError: another version, a missing or unknown field, or choices that contradict each other.
        """
        if not isinstance(tree, Mapping) or tree.get("version") != VERSION:
            found = tree.get("version") if isinstance(tree, Mapping) else tree
            raise UserError(f"plan: version {found!r} is not {VERSION}: make the plan again")
        try:
            fields = dict(tree)
            choices = fields.pop("choices")
            choices = Choices(
                **{
                    **choices,
                    "cuts": tuple(choices["cuts"]),
                    "recompute": tuple(choices["recompute"]),
                    "slabs": tuple(choices.get("slabs", (1, 1, 1))),
                    "recomputed": tuple(choices.get("recomputed", ())),
                }
            )
            choices.check()
            stages = tuple(Stage(**{**stage, "modules": tuple(stage["modules"])}) for stage in fields.pop("stages"))
            return Plan(
                choices=choices,
                stages=stages,
                devices=tuple(DeviceLoad(**device) for device in fields.pop("devices")),
                links=tuple(Link(**link) for link in fields.pop("links")),
                alternatives=tuple(Alternative(**other) for other in fields.pop("alternatives")),
                input_shape=tuple(fields.pop("input_shape")),
                **fields,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"plan: not a plan of version {VERSION}: {error}") from error

    def headline(self) -> str:
        """The choices in one line."""
        shape = "x".join(str(size) for size in self.input_shape)
        return f"{self.network} on {shape}: {describe_choices(self.choices)}, {self.precision}; idle {self.bubble:.0%}"


def describe_choices(choices: Choices) -> str:
    """Such as `2 x 2 devices, 1f1b, 4 micro-batches, recompute none`, or `4x1x1 slabs, 1 micro-batch, ...`."""
    parts = [f"{choices.replicas} x " if choices.replicas > 1 else ""]
    slabs = f"{'x'.join(str(count) for count in choices.slabs)} slabs"
    if choices.spatial and choices.devices == 1:
        parts.append(slabs)
    elif choices.spatial:
        parts.append(f"{choices.devices} places of {slabs}")
    else:
        parts.append(_counted(choices.devices, "device"))
    if choices.stages != choices.devices:
        parts.append(f" ({choices.stages} stages)")
    if choices.tile:
        parts.append(f", tiles of {_counted(choices.tile, 'plane')}")
    if choices.devices > 1:
        parts.append(f", {choices.schedule}")
        if choices.limit is not None:
            parts.append(f" (limit {choices.limit})")
    parts.append(f", {_counted(choices.micro_batches, 'micro-batch')}")
    modes = sorted(set(choices.recompute))
    if choices.recomputed:
        parts.append(f", recompute in {_counted(len(choices.recomputed), 'module')}")
    elif len(modes) == 1:
        parts.append(f", recompute {modes[0]}")
    else:
        again = [str(stage) for stage, mode in enumerate(choices.recompute) if mode != "none"]
        parts.append(f", recompute in stage {', '.join(again)}")
    return "".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('ch') else 's'}"


def plans_to_json(plans: Sequence[Plan]) -> str:
    """The content of a run's `plan.json`: one plan per curriculum stage."""
    return json.dumps({"version": VERSION, "plans": [plan.to_dict() for plan in plans]}, indent=1)


def plans_from_json(text: str) -> tuple[Plan, ...]:
    """Reads `plans_to_json`'s text.

    Raises:
        UserError: not JSON, or not such plans.
    """
    try:
        tree = json.loads(text)
        return tuple(Plan.from_dict(plan) for plan in tree["plans"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"plan.json: not a list of plans: {error}") from error
