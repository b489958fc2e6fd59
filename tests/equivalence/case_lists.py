"""Which cases are run: every schedule, recompute and arrangement, by networks and shapes that make it hard."""

import itertools
from typing import Any

from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule
from tests.equivalence.cases import Case

FULL = ("unet", "dynunet-deep")
"""These run by every schedule, recompute and arrangement."""
BRIEF = ("unet-instance", "dynunet", "seunet", "basicunet")
"""These by a few of each."""
EVEN = ((1, 1, 8, 16, 8),) * 4
MIXED = ((1, 1, 8, 16, 24), (2, 1, 16, 8, 8), (1, 1, 24, 8, 16), (1, 1, 8, 16, 8), (1, 1, 8, 16, 24))
# BasicUNet halves four times and pads odd sizes itself, so that its operations differ between these shapes.
ODD = ((1, 1, 33, 19, 16), (1, 1, 18, 32, 17), (2, 1, 16, 33, 16), (1, 1, 37, 16, 17), (1, 1, 33, 19, 16))
RECOMPUTE: tuple[tuple[Recompute, ...], ...] = (("none",), ("all",), ("all_but_last",), ("none", "all"))
SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "v")


def shapes_of(name: str) -> tuple[tuple[int, ...], ...]:
    return ODD if name.startswith("basicunet") else MIXED


def full_cases(name: str) -> list[Case]:
    """Every schedule with every recompute, on every mesh and with 2 to 5 micro-batches in turn."""
    shapes = shapes_of(name)
    turn = FULL.index(name)
    cases = []
    for n, (schedule, recompute) in enumerate(itertools.product(SCHEDULES, RECOMPUTE)):
        # Odd steps: each schedule meets other numbers in each network.
        replicas, devices = ((1, 2), (1, 3), (1, 4), (2, 2))[(n + n // 4 + turn) % 4]
        count = 2 + (n + n // 4 * 3 + turn) % 4
        each = 3 if schedule == "interleaved" and devices == 2 else 2
        cases.append(Case(name, devices, shapes[:count], schedule, recompute, replicas, each))
    cases += [
        Case(name, 1, shapes[:5], "1f1b", ("none",), 2),
        Case(name, 1, shapes[:4], "v", ("all", "none"), 3),
        Case(name, 1, shapes[:3], "gpipe", ("all",)),
        Case(name, 1, shapes[:2], "interleaved", ("none", "all", "all_but_last"), each=3),
        Case(name, 4, shapes[:1]),
    ]
    return cases


def brief_cases(name: str) -> list[Case]:
    shapes = shapes_of(name)
    return [
        Case(name, 4, shapes[:4], "gpipe", ("all_but_last",)),
        Case(name, 3, shapes[:3], "1f1b", ("none",)),
        Case(name, 2, shapes[:4], "v", ("none", "all")),
        Case(name, 2, shapes[:5], "interleaved", ("all",), 2),
    ]


def special_cases() -> list[Case]:
    shapes: dict[str, Any] = {"shapes": MIXED[:4]}
    mixed: tuple[Recompute, ...] = ("none", "all", "all_but_last")
    return [
        # BatchNorm: more rounds, so that the joined statistics are where the next step begins.
        Case("unet", 4, schedule="gpipe", recompute=("all_but_last",), rounds=2, **shapes),
        Case("unet", 2, MIXED[:5], "v", mixed, 2, rounds=3),
        Case("unet", 1, MIXED[:5], replicas=4, rounds=2),
        Case("basicunet-batch", 2, ODD[:3], "1f1b", ("all_but_last",), 2, rounds=2),
        # A plan made for one shape, used for others; with other operations too.
        Case("seunet", 3, planned_on=(1, 1, 32, 32, 32), **shapes),
        Case("basicunet", 2, ODD[:2], "v", planned_on=(1, 1, 32, 32, 32)),
        # No gradient for the encoder: nothing comes back to the stages that hold it.
        Case("unet", 2, frozen="encoders", **shapes),
        Case("unet", 4, frozen="encoders", schedule="v", recompute=("all",), **shapes),
        Case("unet", 2, frozen="encoders", schedule="interleaved", recompute=mixed, replicas=2, **shapes),
        *(Case(name, k, EVEN[:2], way) for name in ("monai-unet", "segresnet", "attention-unet") for k, way in TWICE),
        # Cuts where no planner would put them; with four stages and more, skips pass over others.
        *(
            Case(name, k, MIXED[:3], schedule, recompute, cut_seed=seed)
            for seed, (name, k, (schedule, recompute)) in enumerate(
                itertools.product(
                    ("unet", "dynunet-deep", "attention-unet"),
                    (2, 4),
                    (("gpipe", ("all",)), ("interleaved", mixed), ("v", mixed)),
                )
            )
        ),
        Case("unet", 3, precision="float32", **shapes),
    ]


TWICE: tuple[tuple[int, Schedule], ...] = ((2, "v"), (4, "1f1b"))


def dropout_cases() -> list[Case]:
    """The first is the reference: our own run on one device."""
    name = "basicunet-dropout"
    return [
        Case(name, 1, ODD[:2]),
        Case(name, 4, ODD[:2], recompute=("all",)),
        Case(name, 2, ODD[:2], "v", ("all_but_last", "none")),
        Case(name, 2, ODD[:2], "interleaved", ("all", "none"), 2),
        Case(name, 1, ODD[:2], recompute=("all",), replicas=2),
    ]


def bfloat16_cases() -> list[Case]:
    """The first is the reference.

    No level has two planes: there torch 2.13 leaves memory of before in the weights' gradient on CPUs with bfloat16.
    """
    shapes = ((1, 1, 24, 16, 8),) * 2
    return [Case("unet", 1, shapes, precision="bfloat16"), Case("unet", 2, shapes, "v", precision="bfloat16")]


EXACT = [
    *(case for name in FULL for case in full_cases(name)),
    *(case for name in BRIEF for case in brief_cases(name)),
    *special_cases(),
]
CASES = [*EXACT, *dropout_cases(), *bfloat16_cases()]
