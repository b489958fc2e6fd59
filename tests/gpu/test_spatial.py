"""Slabs on a GPU: CUDA's kernels of norms against operators that every device has; plans. Skipped without CUDA."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lampseg.hardware.device import hardware_for
from lampseg.networks import UNet
from lampseg.parallel.fake_state import fake_state
from lampseg.parallel.spatial.forecast import hold_anew, rehearsal, slab_cost
from lampseg.parallel.spatial.grids import choices_for
from lampseg.partition.costed import cost_network
from tests.norm_ranks import Case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("planes", [(12,), (7, 5), (5, 3, 4)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["instance", "batch", "group"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 2**-6)], ids=str
)
def test_both_ways_equal_the_whole(
    kind: str, affine: bool, planes: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    case = Case(kind, planes, affine, dtype, "cuda")
    expected = case.whole()
    for fused in (True, False):
        for name, found in case.slabs(fused=fused).items():
            atol = tolerance * max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(found.double(), expected[name], rtol=0, atol=atol)


class Names(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_the_planner_rehearses_what_runs(norm: str) -> None:
    """Norms and convolutions of a rank's slab: as many calls of each operator on fake tensors as on real ones."""
    network = UNet(out_channels=3, filters=8, depth=2, norm=norm, stem_stride=1).to("cuda").train()
    grid, where, stride = (3, 1, 1), (1, 0, 0), (4, 4, 4)
    model = cost_network(network, shape=(1, 1, 96, 16, 16), hardware=hardware_for(kind="cuda"), precision="bfloat16")
    with fake_state(network) as fake:
        hold_anew(model, fake, choices_for(model, grid, micro_batches=1, replicas=1))
        foreseen = slab_cost(model, fake, grid, where, stride=stride, loss=None).tally
    real = rehearsal(model, grid, where, stride=stride, loss=None)
    with Names() as names, torch.autograd.set_multithreading_enabled(False):  # modes are of one thread
        real.run(real.make()).backward()
    for part in ("convolution", "batch_norm", "cat"):
        planned = Counter(k.name for k in (*foreseen.forward, *foreseen.backward) if part in k.name)
        assert planned == Counter({name: n for name, n in names.ran.items() if part in name})
        assert planned
