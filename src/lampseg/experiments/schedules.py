"""The paper's drawings of schedules (Figures 2, 4 and 5), out of the simulator that plans are made with.

Figure 2: one mini-batch over three devices, in one piece (b) and as two micro-batches (c).

Figures 4 and 5: how many batches three devices process in a device time of t. The paper says t/2 for the conventional
U-Net and 3t/4 for the parallel one. Both come out under these assumptions, none of which the paper states:

- A U-Net is four blocks of one unit of time each: e1 and e2 of the encoder, d2 and d1 of the decoder.
- Conventional: a skip can't leave its device, so e1 and d1 lie together, and so do e2 and d2. Then there is work for
  two devices only, each needs two units for a batch, and a batch is done every two units: t/2. The third is idle.
- Parallel: the skip is a value that is handed on, so the four units may be cut anywhere. Three devices get 4/3 units
  each, and a batch is done every 4/3 units: 3t/4.

So the gain, 1.5, is that of using the third device. It is not a property of the skip as such: with four devices the
parallel one does t batches, and with two both do t/2.
"""

from dataclasses import dataclass

from matplotlib.figure import Figure

from lampseg.evaluation.report.figures import COLOURS
from lampseg.partition.schedule import Pace, Schedule, Timetable, forward_timetable, timetable

BLOCKS = 4
DEVICES = 3


@dataclass(frozen=True)
class Drawing:
    """A timetable and what it shows."""

    name: str
    title: str
    table: Timetable
    devices: int
    """Lines to draw; devices without work have one, too."""


@dataclass(frozen=True)
class Throughput:
    """A way to process many batches, forward only."""

    schedule: Schedule
    devices: int
    units: tuple[float, ...]
    """Of each stage."""

    def table(self, batches: int) -> Timetable:
        """The timetable of so many batches."""
        pace = Pace(self.units, self.units, tuple((s, s + 1, 0.0) for s in range(len(self.units) - 1)))
        return forward_timetable(self.schedule, devices=self.devices, micro_batches=batches, pace=pace)

    @property
    def interval(self) -> float:
        """Units of time from one batch's end to the next one's, once the devices are filled."""
        few, many = 50, 150
        return (self.table(many).seconds - self.table(few).seconds) / (many - few)


CONVENTIONAL = Throughput("v", DEVICES - 1, (1.0,) * BLOCKS)
"""e1 and d1 on one device, e2 and d2 on the other; what a third device could do is tied to one of these."""
PARALLEL = Throughput("gpipe", DEVICES, (BLOCKS / DEVICES,) * DEVICES)


def drawings() -> tuple[Drawing, ...]:
    """Figures 2 (b) and (c), 4 and 5."""
    even = Pace((1.0,) * DEVICES, (1.0,) * DEVICES, tuple((s, s + 1, 0.0) for s in range(DEVICES - 1)))
    halves = Pace((0.5,) * DEVICES, (0.5,) * DEVICES, even.links)
    whole = timetable("gpipe", devices=DEVICES, micro_batches=1, pace=even)
    two = timetable("gpipe", devices=DEVICES, micro_batches=2, pace=halves)
    return (
        Drawing("figure2b", "Figure 2 (b): one mini-batch in one piece, forward and backward", whole, DEVICES),
        Drawing("figure2c", "Figure 2 (c): the same mini-batch as two micro-batches", two, DEVICES),
        Drawing("figure4", "Figure 4: conventional U-Net, a batch every 2 units", CONVENTIONAL.table(4), DEVICES),
        Drawing("figure5", "Figure 5: parallel U-Net, a batch every 4/3 units", PARALLEL.table(4), DEVICES),
    )


def schedule_picture(drawing: Drawing) -> Figure:
    """Device against time; the number in a box is the batch's, backwards are hatched."""
    figure = Figure(figsize=(8, 0.9 + 0.45 * drawing.devices), layout="constrained")
    axes = figure.subplots()
    for device, entries in enumerate(drawing.table.devices):
        for entry in entries:
            kind, _, batch = entry.action
            axes.broken_barh(
                [(entry.start, entry.end - entry.start)],
                (device - 0.4, 0.8),
                facecolor=COLOURS[batch % len(COLOURS)],
                edgecolor="white",
                hatch="//" if kind == "backward" else None,
            )
            axes.text((entry.start + entry.end) / 2, device, str(batch + 1), ha="center", va="center", fontsize=8)
    axes.set_yticks(range(drawing.devices), [f"device {n + 1}" for n in range(drawing.devices)])
    axes.set_ylim(drawing.devices - 0.5, -0.5)
    axes.set_xlim(0, drawing.table.seconds)
    axes.set_xlabel("time (units of one block)")
    axes.set_title(drawing.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
