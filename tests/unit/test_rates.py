"""Interpolation between measured rates, and tables made from times."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lampseg.hardware.device import ITEMSIZES
from lampseg.hardware.fallback import falls_back
from lampseg.hardware.measure import Small, Timed, fit, time_sample
from lampseg.hardware.presets import CARDS, cpu_core, preset
from lampseg.hardware.rates import Curve, Dense, Surface, family, moved_bytes, mover
from lampseg.hardware.samples import samples
from lampseg.recording.kernel import Kernel

SMALL = Small(1e-6, 2e-6, 1e-10)


def convolution(inputs: int, outputs: int, side: int, *, backward: bool = False, fallback: bool = False) -> Kernel:
    """3^3, one volume of float32."""
    voxels, weight = side**3, 27 * inputs * outputs
    nbytes = 4 * (voxels * (inputs + outputs) * (2 if backward else 1) + weight)
    flops = 2.0 * voxels * weight * (2 if backward else 1)
    name = "convolution_backward" if backward else "convolution"
    return Kernel(name, "convolution", flops, nbytes, (inputs, outputs), voxels, 27, backward, fallback)


def test_curve_is_a_power_law_between_its_points_and_constant_beyond() -> None:
    curve = Curve((1.0, 100.0), (10.0, 1000.0))
    assert curve.at(10.0) == pytest.approx(100.0)
    assert curve.at(0.1) == pytest.approx(10.0)
    assert curve.at(1e9) == pytest.approx(1000.0)


def test_surface_is_exact_at_its_points_and_geometric_between() -> None:
    surface = Surface((1.0, 16.0), (8.0, 32.0), ((1.0, 4.0), (9.0, 36.0)))
    assert surface.at(16, 8) == pytest.approx(9.0)
    assert surface.at(4, 8) == pytest.approx(3.0)
    assert surface.at(4, 16) == pytest.approx(6.0)
    assert surface.at(64, 128) == pytest.approx(36.0)


def test_spill_is_added_for_large_calls_only() -> None:
    dense = Dense(Surface((1.0,), (1.0,), ((1e9,),)), (1e6, 1e8), (0.0, 1e-9))
    assert dense.seconds(1e9, (8, 8), 1e5) == pytest.approx(1.0)
    assert dense.seconds(1e9, (8, 8), 1e7) == pytest.approx(1.0 + 1e7 * 0.5e-9)
    assert dense.seconds(1e9, (8, 8), 1e9) == pytest.approx(1.0 + 1.0)


@pytest.mark.parametrize(
    "hardware", [cpu_core(1), *(preset(name, kind="cuda") for name in CARDS)], ids=lambda h: h.name
)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_a_larger_volume_takes_longer(hardware, backward: bool, fallback: bool) -> None:
    times = [
        hardware.seconds(convolution(8, 16, side, backward=backward, fallback=fallback)) for side in range(8, 200, 8)
    ]
    assert times == sorted(times)
    assert times[-1] > times[0]
    plain = Kernel("leaky_relu", "pointwise", 0.0, 0, backward=backward)
    times = [hardware.seconds(replace(plain, nbytes=4 * side**3)) for side in range(8, 200, 8)]
    assert times == sorted(times)


def test_the_slow_path_exists_on_a_cpu_only() -> None:
    fast, slow = convolution(8, 8, 24), convolution(8, 8, 24, fallback=True)
    assert cpu_core(1).seconds(slow) > 3 * cpu_core(1).seconds(fast)
    # A plan for CUDA may have been recorded with the CPU's operators.
    assert preset("h100", kind="cuda").seconds(slow) == preset("h100", kind="cuda").seconds(fast)


def test_kernels_are_booked_by_kind_unless_their_operator_has_a_curve_of_its_own() -> None:
    known = cpu_core(1).rates["float32"].moved
    add = Kernel("add", "pointwise", 0.0, 100)
    assert mover(add, known) == "pointwise"
    assert mover(add, {**known, "add/forward": known["pointwise"]}) == "add/forward"
    assert mover(replace(add, name="leaky_relu_"), known) == "in_place"
    norm = Kernel("native_group_norm_backward", "norm", 0.0, 100, backward=True)
    assert mover(norm, known) == "norm/backward"
    assert mover(norm, {**known, "native_group_norm/backward": known["pointwise"]}) == "native_group_norm/backward"
    assert family(replace(convolution(8, 8, 9), taps=1), slow=True) == "pointwise_convolution/direct/forward"


def test_allocations_cost_a_call_and_no_bytes() -> None:
    rates = cpu_core(1).rates["float32"]
    kernel = Kernel("new_empty_strided", "pointwise", 0.0, 10**9)
    assert rates.seconds(kernel, itemsize=4, fallback=True) == rates.overhead


def test_a_gpu_starts_the_next_kernel_while_one_runs() -> None:
    """The launch of 10 us counts where the kernel is shorter; a plan that added it said 50 % more for thin slabs."""
    rates = preset("h100", kind="cuda").rates["bfloat16"]
    speed = rates.moved["pointwise"].values[0]
    long, short = Kernel("add", "pointwise", 0.0, 10**9), Kernel("add", "pointwise", 0.0, 1000)
    assert rates.seconds(long, itemsize=2, fallback=False) == pytest.approx(10**9 / speed)
    assert rates.seconds(short, itemsize=2, fallback=False) == rates.overhead
    for name in ("empty", "_unsafe_view"):
        assert rates.seconds(Kernel(name, "pointwise", 0.0, 0), itemsize=2, fallback=False) == 0


def test_passes_of_a_norm_take_as_long_as_the_operator_that_makes_them_all() -> None:
    """Statistics and result, sums and gradient: a synchronised norm makes the passes of the other one by one."""
    rates = preset("h100", kind="cuda").rates["bfloat16"]
    size = 10**9

    def seconds(*kernels: Kernel) -> float:
        return sum(rates.seconds(kernel, itemsize=2, fallback=False) for kernel in kernels)

    whole = Kernel("native_batch_norm", "norm", 0.0, 2 * size)
    parts = [Kernel("batch_norm_stats", "norm", 0.0, size), Kernel("batch_norm_elemt", "norm", 0.0, 2 * size)]
    assert seconds(*parts) == pytest.approx(seconds(whole))
    assert sum(map(moved_bytes, parts)) == moved_bytes(whole) == 3 * size
    whole = Kernel("native_batch_norm_backward", "norm", 0.0, 3 * size, backward=True)
    parts = [
        Kernel("batch_norm_backward_reduce", "norm", 0.0, 2 * size, backward=True),
        Kernel("batch_norm_backward_elemt", "norm", 0.0, 3 * size, backward=True),
    ]
    assert seconds(*parts) == pytest.approx(seconds(whole))
    assert sum(map(moved_bytes, parts)) == moved_bytes(whole) == 5 * size


@pytest.mark.parametrize("asynchronous", [False, True])
def test_fit_gives_the_times_back(asynchronous: bool) -> None:
    """Times made from known rates, over the channels and sizes that a calibration measures."""
    made = cpu_core(1)
    rates = replace(
        made.rates["float32"],
        overhead=SMALL.overhead,
        backward_overhead=SMALL.backward_overhead,
        asynchronous=asynchronous,
    )
    kernels = [
        convolution(inputs, outputs, 16, backward=backward, fallback=fallback)
        for inputs in (1, 8, 64)
        for outputs in (8, 32)
        for backward in (False, True)
        for fallback in (False, True)
    ]
    large = convolution(8, 32, 80)
    kernels += [large, *(Kernel("leaky_relu", "pointwise", 0.0, size) for size in (10**3, 10**4, 10**6, 10**8))]
    times = [Timed(k, None, rates.seconds(k, itemsize=4, fallback=True)) for k in kernels]
    fitted = fit(times, SMALL, itemsize=4, asynchronous=asynchronous)
    for timed in times:
        assert fitted.seconds(timed.kernel, itemsize=4, fallback=True) == pytest.approx(timed.seconds, rel=0.02)


def test_fit_does_not_believe_that_more_work_takes_less_time() -> None:
    """A clock may say so when something else ran meanwhile; a planner must not learn it."""
    sizes, seconds = (10**6, 10**7, 10**8), (1e-3, 5e-3, 4e-3)
    times = [Timed(Kernel("relu", "pointwise", 0.0, size), None, s) for size, s in zip(sizes, seconds)]
    curve = fit(times, SMALL, itemsize=4).moved["pointwise"]
    took = [size / curve.at(size) for size in sizes]
    assert took[0] < took[1] <= took[2] * (1 + 1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_quick_samples_make_whole_tables(precision: str) -> None:
    """Every sample runs in every precision, and together they cover every family and kind."""
    device, dtype = torch.device("cpu"), getattr(torch, precision)
    listed = samples(kind="cpu", precision=precision, quick=True)
    timed = [t for sample in listed for t in time_sample(sample, device=device, dtype=dtype, quick=True)]
    rates = fit(timed, SMALL, itemsize=ITEMSIZES[precision])
    assert rates.fault() is None
    assert all(t.seconds > 0 for t in timed)


OPTIONS = ([1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1)


@pytest.mark.parametrize(
    ("shape", "slow"),
    [((1, 8, 50, 51, 9), True), ((1, 8, 50, 52, 9), False), ((1, 8, 9, 9, 999), True), ((2, 8, 9, 9, 9), False)],
)
def test_the_slow_path_is_for_small_planes_at_batch_1(shape: tuple[int, ...], slow: bool) -> None:
    """8 x 50 x 51 = 20400 channels x planes x rows are 12 times slower than 8 x 50 x 52: the last size is not in it.

    A plan that did not know it would balance stages by the wrong times.
    """
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch without oneDNN has one path only")
    x, weight = torch.empty(shape, device="cpu"), torch.empty(8, 8, 3, 3, 3)
    assert falls_back(x, weight, options=OPTIONS) == slow
    assert falls_back(x.double(), weight.double(), options=OPTIONS)
    assert F.conv3d(x[:, :, :5, :5, :5], weight, padding=1).shape[1] == 8
