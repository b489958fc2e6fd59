"""The trainer: the curriculum on every rank of a world, step by step, resumable at any checkpoint."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lampseg.config import Config
from lampseg.errors import UserError
from lampseg.evaluation.tables import write_text
from lampseg.parallel.exchange import gather_all, scatter_all
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.randomness import mix
from lampseg.parallel.spatial.runner import SlabRunner
from lampseg.parallel.spatial.self_check import check_slabs
from lampseg.parallel.state import named_state
from lampseg.parallel.tiled.runner import TileRunner
from lampseg.parallel.world import World
from lampseg.partition import Plan
from lampseg.training.ahead import ReadAhead
from lampseg.training.batches import MicroBatch, cut
from lampseg.training.checkpoint import (
    by_first_name,
    check_fits,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
    save_weights,
    step_checkpoints,
    with_all_names,
)
from lampseg.training.job import Job
from lampseg.training.journal import Journal
from lampseg.training.loss import HybridLoss, mini_batch_loss
from lampseg.training.memory import PeakMemory, TensorPeak
from lampseg.training.out_of_memory import shortage_noticed
from lampseg.training.selection import Selection
from lampseg.training.supervision import supervised_loss
from lampseg.training.validation import validate


class Trainer:
    """Trains one job on the ranks of a world and leaves a run folder.

    Nothing of a step depends on the steps before but through the weights and the optimizer's numbers: patches are a
    function of seed, stage and step, random operations of seed, step and operation. So a checkpoint needs no
    generator states, and a run continues exactly, on any number of devices.
    """

    def __init__(self, job: Job, plans: tuple[Plan, ...], *, world: World, run: Path, resume: bool) -> None:
        self.job, self.plans, self.world, self.run_folder = job, plans, world, run
        self.config: Config = job.config
        self.dtype = torch.float64 if self.config.precision == "float64" else torch.float32
        self.loss = HybridLoss(job.class_weights, self.config.loss.focal, self.config.loss.gamma).to(world.device)
        self.lengths = [job.steps(stage) for stage in range(len(self.config.curriculum))]
        self.step = 0
        prefetch = self.config.data.prefetch
        self.ahead = ReadAhead(on=prefetch == "always" or (prefetch == "auto" and world.device.type == "cuda"))
        self._checked: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()
        self.selection = Selection()
        network = job.build()
        saved = self._read_checkpoint(network) if resume else None
        stage = self._stage_after(self.step)[0]
        self.model = ParallelModel(network, plans[stage], world=world, stride=job.stride)
        self.optimizer = self._new_optimizer(stage)
        self.memory = PeakMemory(world.device, held=sum(t.numel() * t.element_size() for t in self._held()))
        self.tensors = TensorPeak(world.device)
        if saved is not None:
            self.model.load(saved[0])
            self._load_optimizer(saved[1])
        self.stage = stage

    @property
    def checkpoints(self) -> Path:
        return self.run_folder / "checkpoints"

    @property
    def total(self) -> int:
        return sum(self.lengths)

    def train(self) -> None:
        """Runs all steps that remain."""
        self._check_slabs()
        if self.world.first:
            with Journal(self.run_folder, total=self.total, step=self.step) as journal:
                self._loop(journal)
        else:
            self._loop(None)

    def _check_slabs(self) -> None:
        """Refuses to start where slabs are not what the whole volume is; once for each grid and what runs again."""
        runner = self.model.runner
        if isinstance(runner, TileRunner) or runner.spatial is None:
            return
        slabs, recomputed = runner.choices.slabs, runner.choices.recomputed
        if (slabs, recomputed) not in self._checked:
            # A pipeline has only parts of the network: what is checked is functions, so other weights do as well.
            whole = self.model.network if isinstance(runner, SlabRunner) else self.job.build()
            check_slabs(
                whole,
                runner.spatial,
                channels=self.job.channels,
                stride=self.job.stride,
                recomputed=recomputed,
            )
            self._checked.add((slabs, recomputed))

    def _loop(self, journal: Journal | None) -> None:
        while self.step < self.total:
            stage, within = self._stage_after(self.step)
            if stage != self.stage:
                self._enter(stage)
            if within == 0 and journal is not None:
                journal.say(f"curriculum stage {stage + 1}: {self.plans[stage].headline()}")
            with self._memory_watched(stage, during="training"):
                record = self._one_step(stage, within)
            self.step += 1
            if journal is not None:
                journal.step(record)
            last_of_stage = within + 1 == self.lengths[stage]
            every = self.config.validation.every_steps
            if last_of_stage or (every is not None and self.step % every == 0):
                with self._memory_watched(stage, during="validation"):
                    self._validate(stage, record["epoch"], journal)
            if last_of_stage or self.step % self.config.checkpoint.every_steps == 0:
                self._save(stage, ended=last_of_stage)

    def _memory_watched(self, stage: int, *, during: str) -> contextlib.AbstractContextManager[None]:
        return shortage_noticed(
            self.run_folder,
            self.plans[stage],
            rank=self.world.rank,
            stage=stage,
            device=self.world.device,
            held=self.memory.read,
            during=during,
        )

    def _stage_after(self, step: int) -> tuple[int, int]:
        """The curriculum stage of the step that follows `step` done ones, and its number within the stage."""
        for stage, length in enumerate(self.lengths):
            if step < length:
                return stage, step
            step -= length
        return len(self.lengths) - 1, self.lengths[-1]

    def _enter(self, stage: int) -> None:
        """Re-plans: weights and optimizer numbers go to the ranks that hold them from now on."""
        numbers = self._gather_optimizer()
        self.model.replan(self.plans[stage])
        self.optimizer = self._new_optimizer(stage)
        self._load_optimizer(numbers)
        self.tensors = TensorPeak(self.world.device)
        self.stage = stage
        self._check_slabs()

    def _one_step(self, stage: int, within: int) -> dict[str, Any]:
        settings = self.config.curriculum[stage]
        runner = self.model.runner
        batches = self.ahead.take((stage, within)) or self._batches(stage, within)
        if self.ahead.on and within + 1 < self.lengths[stage]:
            self.ahead.announce((stage, within + 1), self._batches(stage, within + 1))

        def loss(m: int, output: Any) -> Tensor:
            batch = batches[m]
            target = runner.placed(self.tensors.noted(batch.target()), batch.shape)
            valid = batch.valid()
            valid = None if valid is None else runner.placed(valid, batch.shape)
            terms = supervised_loss(self.loss, output, target, batch.annotated(), valid)
            return mini_batch_loss(terms, batch=settings.batch)

        self.memory.reset()
        begun = time.perf_counter()
        with self.tensors.measure(self._held()):
            losses = runner.step(
                [batch.shape for batch in batches],
                load=lambda m: self.tensors.noted(batches[m].image()),
                loss=loss,
                seed=mix(self.config.seed, self.step),
            )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.ahead.note_used(batches)
        mine = {
            "loss": sum(losses),
            "peak": self.memory.read(),
            "tensors": self.tensors.nbytes,
            "busy": runner.busy,
            "stages": runner.seconds,
            "seconds": time.perf_counter() - begun,
        }
        ranks: list[Any] = self.world.gather(mine)
        value = float(sum(rank["loss"] for rank in ranks))  # where an output is, its replica's; elsewhere 0
        if not torch.isfinite(torch.tensor(value)):
            raise UserError(
                f"the loss is {value} at step {self.step + 1} (curriculum stage {stage + 1}): lower "
                f"curriculum.{stage}.lr (now {settings.lr}); what was saved before is unharmed"
            )
        largest = [max(batch.shape[2 + axis] for batch in batches) for axis in range(3)]
        record = {
            "step": self.step + 1,
            "stage": stage,
            "epoch": within // self.job.sampler(stage).steps_per_epoch,
            "loss": value,
            "seconds": max(rank["seconds"] for rank in ranks),
            "patch": largest,
            "peak_memory_bytes": [rank["peak"] for rank in ranks],
            "lr": settings.lr,
            "plan": self.plans[stage].choices.fingerprint,
        }
        if self.tensors.nbytes is not None:  # on every rank, or on none
            record["tensor_peak_bytes"] = [rank["tensors"] for rank in ranks]
        if self.world.device.type == "cpu":  # on CUDA it is the device that waits: not seen from here
            record["busy_seconds"] = [rank["busy"] for rank in ranks]
            record["stage_seconds"] = [rank["stages"] for rank in ranks]
        return record

    def _batches(self, stage: int, within: int) -> list[MicroBatch]:
        """The micro-batches of a step; nothing is read yet."""
        sampler = self.job.sampler(stage)
        draws = sampler.draws(within)
        # Volumes of one batch differ in shape; those of one micro-batch must not.
        parts = cut(draws, len(draws) if self.config.curriculum[stage].whole else self.plans[stage].micro_batches)
        region = self.model.runner.region
        return [MicroBatch(sampler, part, self.dtype, self.world.device, region) for part in parts]

    def _held(self) -> Iterator[Tensor]:
        """What lies on my device between the steps: parameters, buffers, and the optimizer's numbers."""
        mine = set(self.model.owned)
        yield from (tensor for name, tensor in named_state(self.model.network).items() if name in mine)
        for numbers in self.optimizer.state.values():
            yield from (value for value in numbers.values() if isinstance(value, Tensor))

    def _validate(self, stage: int, epoch: int, journal: Journal | None) -> None:
        patch = self.config.curriculum[stage].size if self.config.validation.window == "patch" else None
        if not self.job.validation:
            score: float | None = None
        else:
            evaluation, seconds = validate(
                self.model,
                self.job.validation,
                classes=self.job.classes,
                stride=self.job.stride,
                window=self.job.window or patch,
                dtype=self.dtype,
            )
            score = evaluation.average
            if journal is not None:
                journal.validation(
                    {
                        "step": self.step,
                        "stage": stage,
                        "epoch": epoch,
                        "validation": score,
                        "dice": evaluation.by_organ(),
                        "seconds": seconds,
                    }
                )
        names = list(self.selection.offer(step=self.step, stage=stage, score=score))
        if self.config.validation.keep:
            names.append(f"validated/step-{self.step:08d}")
        if names:
            weights = self._gather_weights()
            if self.world.first:
                for name in names:
                    path = self.checkpoints / f"{name}.safetensors"
                    # One entry: of several, safetensors writes the order as it likes.
                    trained = json.dumps({"step": self.step, "stage": stage + 1})
                    save_weights(path, weights, metadata={"trained": trained})
                write_text(self.run_folder / "best.json", json.dumps(self.selection.to_json()))

    def _save(self, stage: int, *, ended: bool) -> None:
        weights, numbers = self._gather_weights(), self._gather_optimizer()
        if not self.world.first:
            return
        save_checkpoint(
            self.checkpoints,
            step=self.step,
            network=weights,
            optimizer=numbers,
            state={"best": self.selection.to_json()},
        )
        if ended:
            path = self.checkpoints / f"stage-{stage + 1}.safetensors"
            save_weights(path, weights, metadata={"step": str(self.step)})

    def _gather_weights(self) -> dict[str, Tensor]:
        """The network as it is to be saved, on rank 0; elsewhere nothing.

        Raises:
            UserError: a weight is not finite, as may happen one step before the loss is.
        """
        weights = self.model.gather()
        broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
        if broken:
            raise UserError(
                f"the weights `{broken[0]}` are not finite after step {self.step} (curriculum stage "
                f"{self.stage + 1}): lower curriculum.{self.stage}.lr; what was saved before is unharmed"
            )
        return with_all_names(self.model.network, weights) if self.world.first else {}

    def _read_checkpoint(self, network: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rank 0 reads; the step and the best so far are told to all."""
        found = step_checkpoints(self.checkpoints)
        weights: dict[str, Tensor] = {}
        numbers: dict[str, Tensor] = {}
        state: Any = None
        fault: str | None = None
        if self.world.first and found:
            try:
                weights, numbers, state = load_checkpoint(found[-1])
                check_fits(network, weights, source=str(found[-1]))
            except UserError as error:
                fault = str(error)
            weights = by_first_name(network, weights)
        answer: Any = self.world.broadcast((fault, state))
        fault, state = answer
        if fault is not None:
            raise UserError(fault)
        if state is not None:
            self.step, self.selection = int(state["step"]), Selection.from_json(state["best"])
        return weights, numbers

    def _new_optimizer(self, stage: int) -> torch.optim.Optimizer:
        parameters = list(self.model.parameters().values())
        # A stage without parameters still takes part; torch refuses an empty list.
        return torch.optim.RMSprop(
            parameters or [torch.zeros(1, requires_grad=True)],
            lr=self.config.curriculum[stage].lr,
            **self.config.optimizer.kwargs,
        )

    def _gather_optimizer(self) -> dict[str, Tensor]:
        names = {id(parameter): name for name, parameter in self.model.parameters().items()}
        return gather_all(optimizer_state(self.optimizer, names), mesh=self.model.mesh)

    def _load_optimizer(self, numbers: dict[str, Tensor]) -> None:
        known: Any = self.world.broadcast(sorted(numbers) if self.world.first else None)
        owners = {key: self.model.owners[key.split(":", 1)[1]] for key in known}
        mine = scatter_all(numbers, owners=owners, mesh=self.model.mesh)
        restore_optimizer(self.optimizer, self.model.parameters(), mine)
