"""Slab mode: an unmodified network runs on slabs of a volume, one on each rank, and equals itself on the whole volume.

    spatial = SpatialParallel(mesh, {"x": 2}, stride=network_stride)
    with spatial:
        loss = criterion(network(spatial.shard(image)), spatial.shard(labels, dims={"x": 1}))
        spatial.backward(loss)
    spatial.sum_gradients(network.parameters())

Every tensor is a slab or a replica (see `layout`). A function that takes a slab runs by the rule that is known to be
exact for it (`rules`); one without a rule is refused. A function of replicas runs as it is, on every rank.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lampseg.errors import UserError
from lampseg.parallel.randomness import is_random, mix, seeded
from lampseg.parallel.spatial.collectives import moved, slab_of, whole_of
from lampseg.parallel.spatial.exchange import Axis, Traffic
from lampseg.parallel.spatial.layout import (
    Layout,
    Shard,
    is_constant,
    layout_of,
    mark,
    mark_constant,
    spread_edges,
    unmark_constant,
)
from lampseg.parallel.spatial.queries import CONSTANTS, KEEP_CONSTANT, QUERIES, UPSAMPLING
from lampseg.parallel.spatial.refusal import NotExactError, calling_line
from lampseg.parallel.spatial.register import RULES
from lampseg.parallel.spatial.window import some_empty
from lampseg.recording.kernels import tensors_in
from lampseg.recording.recorder import function_name

ENOUGH = 4
"""Planes. Of thinner slabs the ends, which are computed by themselves, would be too large a part."""


@dataclass(frozen=True)
class Moment:
    """How far a forward was."""

    seed: int
    calls: int
    """Random operations so far."""
    known: Mapping[tuple[int, int], tuple[int, ...]]
    """Edges of slabs, by axis and number of planes."""


class SpatialParallel(TorchFunctionMode):
    """Cuts volumes into slabs over a device mesh and runs networks on them.

    Args:
        mesh: of torch; every rank of it works on the same volume.
        dims: for each axis of the mesh, the dimension of the network's input that it cuts (2 is the first spatial
            one). One, two or three.
        stride: the network's total down-sampling along each spatial dimension: edges of slabs lie on its multiples.
        overlapped: compute the interior of a convolution while its halo travels. None: on CUDA, for slabs of at least
            ENOUGH planes that are larger than the weights; on a CPU, where messages take a core themselves, there is
            nothing to gain.
        seed: for random operations; the same on every rank.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    """Of a rehearsal."""

    def __init__(
        self,
        mesh: DeviceMesh,
        dims: Mapping[str, int],
        *,
        stride: int | Sequence[int] = 1,
        overlapped: bool | None = None,
        seed: int = 0,
    ) -> None:
        names = mesh.mesh_dim_names or ()
        for name, dim in dims.items():
            if name not in names:
                raise UserError(f"the mesh has no axis `{name}`; it has {', '.join(names) or 'none with a name'}")
            if dim < 2:
                raise UserError(f"dimension {dim} can't be cut into slabs: the spatial ones begin at 2")
        if len(set(dims.values())) < len(dims):
            raise UserError(f"two axes of the mesh cut one dimension: {dict(dims)}; give each its own")
        self._setup(_axes({name: mesh.get_group(name) for name in dims}, dims), stride, overlapped, seed)

    @classmethod
    def over(
        cls,
        groups: Mapping[str, dist.ProcessGroup],
        dims: Mapping[str, int],
        *,
        stride: int | Sequence[int] = 1,
        overlapped: bool | None = None,
    ) -> "SpatialParallel":
        """The same from process groups: for each axis, the ranks that differ from me along it only."""
        self = cls.__new__(cls)
        self._setup(_axes(groups, dims), stride, overlapped, 0)
        return self

    @classmethod
    def rehearsal(
        cls,
        sizes: Mapping[str, int],
        dims: Mapping[str, int],
        *,
        place: Mapping[str, int] | None = None,
        stride: int | Sequence[int] = 1,
        overlapped: bool | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> "SpatialParallel":
        """What one rank of a mesh would do, without the others: nothing is sent, received planes hold anything.

        Args:
            sizes: ranks of each axis.
            place: the rank's place on each; None: in the middle.
            device: what fake tensors stand for: where there is no CUDA, they can only be those of a CPU.
        """
        place = place or {name: size // 2 for name, size in sizes.items()}
        self = cls.__new__(cls)
        self.device = device
        axes = {name: Axis(n, dims[name], sizes[name], place[name], None) for n, name in enumerate(sizes)}
        self._setup(axes, stride, overlapped, 0)
        return self

    def rehearsed(self) -> "SpatialParallel":
        """The same for a rehearsal: it sends nothing, and counts its traffic anew."""
        names = {name: self.axes[number] for name, number in self.names.items()}
        return SpatialParallel.rehearsal(
            {name: axis.size for name, axis in names.items()},
            {name: axis.dim for name, axis in names.items()},
            place={name: axis.rank for name, axis in names.items()},
            stride=self.stride,
            overlapped=self._overlapped,
            device=self.device,
        )

    def _setup(self, axes: dict[str, Axis], stride: int | Sequence[int], overlapped: bool | None, seed: int) -> None:
        super().__init__()
        axes = {name: axis for name, axis in axes.items() if axis.size > 1}  # one rank has no slabs, but the whole
        self.names = {name: number for number, name in enumerate(axes)}
        self.axes = tuple(replace(axis, number=number) for number, axis in enumerate(axes.values()))
        self.stride, self.seed = stride, seed
        self._overlapped = overlapped
        self._known: dict[tuple[int, int], tuple[int, ...]] = {}
        self._calls = 0
        self._trace = 0
        self.regular = True
        """Whether slabs of the volume have whole numbers of planes on every level, so that sizes are even or odd there
        as those of the whole are: a network may decide by them."""

    # ---- what callers use

    @property
    def size(self) -> int:
        """Ranks that share one volume."""
        size = 1
        for axis in self.axes:
            size *= axis.size
        return size

    @property
    def traffic(self) -> Traffic:
        """What this rank has sent, over all axes."""
        total = Traffic()
        for axis in self.axes:
            total.halo_bytes += axis.traffic.halo_bytes
            total.halo_messages += axis.traffic.halo_messages
            total.collective_bytes += axis.traffic.collective_bytes
            total.collectives += axis.traffic.collectives
        return total

    @property
    def trace(self) -> int:
        """Of the functions of slabs since `begin`, and their edges: the same on every rank, or their ways part."""
        return self._trace

    def edges(self, axis: Axis, total: int) -> tuple[int, ...]:
        """Where the slabs of a volume with so many planes begin and end."""
        unit = self.stride if isinstance(self.stride, int) else self.stride[axis.dim - 2]
        edges = spread_edges(total, axis.size, unit=unit)
        self.regular = self.regular and all(edge % unit == 0 for edge in edges)
        if some_empty(edges):
            raise UserError(
                f"{total} planes along dimension {axis.dim} can't be shared by {axis.size} ranks: use fewer, or cut "
                "another dimension"
            )
        return edges

    def layout(self, shape: Sequence[int], *, dims: Mapping[str, int] | None = None) -> Layout:
        """How a whole of this shape is cut.

        Args:
            dims: where the spatial dimensions are, if not where the network's input has them.
        """
        found = []
        for name, number in self.names.items():
            axis = self.axes[number]
            dim = axis.dim if dims is None else dims[name]
            found.append(Shard(number, dim, self.edges(axis, shape[dim])))
        return tuple(found)

    def shard(self, whole: Tensor, *, dims: Mapping[str, int] | None = None) -> Tensor:
        """My slab of a tensor that I have all of."""
        layout = self.layout(whole.shape, dims=dims)
        with torch._C.DisableTorchFunction():
            slab = whole
            for shard in layout:
                slab = slab_of(slab, self.axes[shard.axis], shard.dim, shard.edges)
            slab = slab.contiguous()
        return self.slab(slab, layout)

    def slab(self, mine: Tensor, layout: Layout) -> Tensor:
        """Marks a tensor as my slab of a whole with this layout, e.g. one that was loaded as a slab."""
        for shard in layout:
            rank = self.axes[shard.axis].rank
            expected = shard.edges[rank + 1] - shard.edges[rank]
            if mine.shape[shard.dim] != expected:
                raise UserError(f"a slab of {mine.shape[shard.dim]} planes; its layout says {expected}")
            self._known.setdefault((shard.axis, shard.total), shard.edges)
        return mark(mine, layout)

    def unshard(self, slab: Tensor) -> Tensor:
        """The whole tensor, on every rank."""
        layout = layout_of(slab)
        with torch._C.DisableTorchFunction():
            whole = slab
            for shard in layout:
                self._plain(shard)
                whole = whole_of(whole, self.axes[shard.axis], shard.dim, shard.edges)
        return mark(whole, ()) if whole is not slab else whole

    def backward(self, loss: Tensor) -> None:
        """Of a scalar that is the same on every rank: each contributes its share of the one gradient."""
        if layout_of(loss):
            raise UserError("the loss is a slab: reduce it (mean or sum) before backward")
        (loss / self.size).backward()  # type: ignore[no-untyped-call]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes the gradients of parameters those of one device. (DistributedDataParallel and FSDP do it, too.)"""
        for parameter in parameters:
            if parameter.grad is not None:
                for axis in self.axes:
                    axis.all_reduce(parameter.grad)

    @contextlib.contextmanager
    def random(self, seed: int) -> Iterator[None]:
        """Draws random numbers from another seed: that of a step."""
        before, self.seed = self.seed, seed
        try:
            yield
        finally:
            self.seed = before

    def moment(self) -> Moment:
        """What a second run of the same forward has to find as the first did."""
        return Moment(self.seed, self._calls, dict(self._known))

    @contextlib.contextmanager
    def again(self, moment: Moment) -> Iterator[None]:
        """Within the mode, as it was at that moment."""
        calls, known, trace = self._calls, self._known, self._trace
        self._calls, self._known = moment.calls, dict(moment.known)
        try:
            with self.random(moment.seed), contextlib.ExitStack() as stack:
                if all(mode is not self for mode in _get_current_function_mode_stack()):
                    stack.enter_context(self)
                yield
        finally:
            self._calls, self._known, self._trace = calls, known, trace

    # ---- what rules use

    @property
    def calls(self) -> int:
        """Random operations so far."""
        return self._calls

    @calls.setter
    def calls(self, value: int) -> None:
        self._calls = value

    @property
    def known(self) -> tuple[tuple[tuple[int, int], tuple[int, ...]], ...]:
        """Where sizes are cut, as far as was seen in this pass: ((axis, planes), edges)."""
        return tuple(self._known.items())

    @known.setter
    def known(self, value: tuple[tuple[tuple[int, int], tuple[int, ...]], ...]) -> None:
        self._known = dict(value)

    def on_cuda(self, x: Tensor) -> bool:
        """Whether functions of `x` run on CUDA or, in a rehearsal where there is none, stand for such."""
        return x.is_cuda or (self.device == "cuda" and isinstance(x, FakeTensor))

    def overlapped(self, x: Tensor, dim: int, weight: Tensor) -> bool:
        """Whether the interior is computed first, before a convolution whose last halo is along `dim`.

        That reads the weights anew for each end, and spares copies of the slab.
        """
        if self._overlapped is None:
            return self.on_cuda(x) and x.shape[dim] >= ENOUGH and x.numel() >= weight.numel()
        return self._overlapped

    def local(self, shard: Shard) -> int:
        """Planes of my slab."""
        rank = self.axes[shard.axis].rank
        return shard.edges[rank + 1] - shard.edges[rank]

    def marked(self, tensor: Tensor, layout: Iterable[Shard]) -> Tensor:
        """Marks a result, and remembers where its edges are for others of the same size."""
        layout = tuple(layout)
        for shard in layout:
            if not shard.merged:
                self._known.setdefault((shard.axis, shard.total), shard.edges)
            assert tensor.shape[shard.dim] == self.local(shard) or shard.merged, "the slab has the planes it should"
        unmark_constant(tensor)
        return mark(tensor, layout)

    def gathered(self, x: Tensor, shard: Shard) -> Tensor:
        """The tensor with one axis' slabs put together, on every rank of the axis."""
        self._plain(shard)
        rest = [other for other in layout_of(x) if other.axis != shard.axis]
        return self.marked(whole_of(x, self.axes[shard.axis], shard.dim, shard.edges), rest)

    def fitted(self, x: Tensor, shard: Shard) -> Tensor:
        """The tensor cut along one axis as `shard` says: a replica's slab, or a slab between other edges."""
        axis = self.axes[shard.axis]
        layout = [other for other in layout_of(x) if other.axis != shard.axis]
        now = next((other for other in layout_of(x) if other.axis == shard.axis), None)
        if now is None:
            return self.marked(slab_of(x, axis, shard.dim, shard.edges), [*layout, shard])
        if now.edges == shard.edges:
            return x
        self._plain(now)
        return self.marked(moved(x, axis, now.dim, now.edges, shard.edges), [*layout, shard])

    def cut_again(self, x: Tensor) -> Tensor:
        """After up-sampling a level that was too small for slabs: cuts as the volume was cut at this size before."""
        there = {shard.axis for shard in layout_of(x)}
        for axis in self.axes:
            if axis.number in there or x.dim() <= axis.dim:
                continue
            edges = self._known.get((axis.number, x.shape[axis.dim]))
            if edges is not None:
                x = self.fitted(x, Shard(axis.number, axis.dim, edges))
        return x

    def refuse(self, func: Callable[..., Any], why: str = "", *, remedy: str = "") -> NotExactError:
        """The error to raise for a call that may be wrong on slabs."""
        return NotExactError(
            f"`{function_name(func)}`{calling_line()} is not known to be exact on slabs{': ' + why if why else ''}; "
            + (remedy or "run this network with `parallel.mode: pipeline`, or express it by functions that are")
        )

    def random_call(self, func: Callable[..., Any], args: Any, kwargs: Any, *, layout: Layout, device: Any) -> Any:
        """Calls a function that draws numbers: different ones along the axes that cut its tensor, else the same."""
        self._calls += 1
        places = [number for shard in layout for number in (shard.axis, self.axes[shard.axis].rank)]
        with seeded(mix(self.seed, self._calls, *places), device):
            return func(*args, **kwargs)

    def _plain(self, shard: Shard) -> None:
        if shard.merged:
            raise NotExactError(f"a volume that was flattened to voxels can't be put together again{calling_line()}")

    # ---- the mode itself

    def begin(self) -> None:
        """Forgets the sizes of the volume before; random operations are counted anew."""
        self._known.clear()
        self._calls = self._trace = 0
        self.regular = True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in QUERIES:
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        if any(layout_of(tensor) for tensor in given):
            rule = RULES.get(func)
            if rule is None:
                raise self.refuse(func)
            out = rule(self, func, args, kwargs)
            cuts = [(shard.dim, shard.edges) for shard in layout_of(out)] if isinstance(out, Tensor) else ()
            self._trace = zlib.crc32(f"{function_name(func)} {cuts}".encode(), self._trace)
            return out
        return self._on_replicas(func, args, kwargs, given)

    def _on_replicas(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        name = function_name(func)
        if is_random(name):
            device = given[0].device if given else torch.device(kwargs.get("device") or "cpu")
            for tensor in given:
                unmark_constant(tensor)
            return self.random_call(func, args, kwargs, layout=(), device=device)
        out = func(*args, **kwargs)
        constant = given and all(is_constant(tensor) for tensor in given) and func in KEEP_CONSTANT
        if name in CONSTANTS or constant:
            if isinstance(out, Tensor):
                mark_constant(out)
        else:
            for tensor in given:
                unmark_constant(tensor)
        if func in UPSAMPLING and isinstance(out, Tensor):
            return self.cut_again(out)
        return out


def _axes(groups: Mapping[str, dist.ProcessGroup], dims: Mapping[str, int]) -> dict[str, Axis]:
    return {
        name: Axis(number, dims[name], dist.get_world_size(group), dist.get_rank(group), group)
        for number, (name, group) in enumerate(groups.items())
    }
