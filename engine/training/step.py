"""One training step: a batch forward and backward, and the optimiser's update where one is due."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from datasets.loading import Sample
from engine.cuda_graphs import TrainingPass, can_capture
from engine.training.epoch_losses import NonFiniteLoss
from engine.training.optimizers import make_optimizer
from engine.training.options import TrainingOptions
from engine.training.schedule import warmup_then_cosine
from engine.training.teachers import Teachers
from engine.training.weight_average import WeightAverage
from models.base import SegmentationModel

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingStep:
    """What a step changes: the weights, their average, the optimiser and the learning rate.

    Attributes:
        wrapped: `system` as accelerate runs it, in mixed precision and with gradients averaged over the
            processes.
        loss_names: what a step returns.
        average: of the weights, where `ema_decay` asks for one.
        buffers: such as running statistics of batch normalisation, which the forward pass already changes.
        finite_buffers: those that were finite at first; others are constants such as a mask of -inf.
    """

    def __init__(
        self,
        system: SegmentationModel,
        options: TrainingOptions,
        steps_per_epoch: int,
        accelerator: Accelerator,
        teachers: Teachers | None = None,
    ) -> None:
        self.system, self.accelerator, self.teachers = system, accelerator, teachers
        self.clip_norm, self.may_skip = options.clip_norm, options.skip_nonfinite > 0
        self.loss_names = (*system.loss_names, "dice")
        self.peak_rate = options.lr
        self.rate_factor = warmup_then_cosine(
            options.warmup_epochs * steps_per_epoch, options.epochs * steps_per_epoch
        )
        optimizer = make_optimizer(
            options.optimizer, system.parameters(), options.lr, options.weight_decay
        )
        self.scheduler = LambdaLR(optimizer, self.rate_factor)
        self.wrapped, self.optimizer = accelerator.prepare(system, optimizer)
        self.average = WeightAverage(system, options.ema_decay) if options.ema_decay else None
        to_capture = options.accumulate == 1 and can_capture(system, accelerator)
        self.training_pass = TrainingPass(self.wrapped, accelerator, to_capture)
        self.buffers = [b for part in system.parts().values() for b in part.buffers()]
        self.finite_buffers = [buffer for buffer in self.buffers if buffer.isfinite().all()]
        self._discarded = False  # a batch of the step that is being accumulated had no finite loss

    @property
    def evaluated_system(self) -> SegmentationModel:
        """The weights that are validated and kept: the average, where there is one."""
        return self.system if self.average is None else self.average.system

    @property
    def last_rate(self) -> float:
        """Learning rate of the step before."""
        return self.peak_rate * self.rate_factor(self.scheduler.last_epoch - 1)

    def capture(self, batch_size: int, image_size: int) -> None:
        """Capture the step, where it will be replayed, before the loader's threads are at work."""
        if self.training_pass.to_capture:
            shapes = self.system.batch_shapes(batch_size, image_size)
            device = self.accelerator.device
            self.training_pass.capture(*(torch.zeros(shape, device=device) for shape in shapes))

    def __call__(self, batch: Sample) -> torch.Tensor:
        """One batch forward and backward, with an update where one is due.

        If the loss is not finite and may be skipped, the batch and the whole update that it belongs to are
        discarded. Returns the losses in the order of `loss_names`, float64, means over the processes, on
        the device, without waiting for it.
        """
        before = [buffer.clone() for buffer in self.buffers] if self.may_skip else []
        image, mask = batch["image"], batch["mask"]
        if self.teachers is not None:
            mask = self.teachers.mixed_into(mask, image)
        with self.accelerator.accumulate(self.wrapped):
            losses = self.training_pass(image, mask, batch["noise"])
            loss = losses["loss"]
            values = torch.stack([losses[n].detach().double() for n in self.loss_names])
            values = cast(torch.Tensor, self.accelerator.reduce(values, "mean"))
            if self.may_skip and not torch.isfinite(values[0]):
                self._discarded = True
                for buffer, kept in zip(self.buffers, before, strict=True):
                    buffer.copy_(kept)
            else:
                self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self._update()
        return values

    def _update(self) -> None:
        """A step of the optimiser, left out where the loss of one of its batches was not finite."""
        discarded, self._discarded = self._discarded, False
        taken = not discarded and self._step_optimizer()
        if taken and self.average is not None:
            self.average.update()
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            if not taken:  # torch warns of a schedule that begins before the optimiser
                warnings.simplefilter("ignore")
            self.scheduler.step()

    def _step_optimizer(self) -> bool:
        """Whether the optimiser took its step: fp16's scaler leaves out those whose gradients overflow."""
        if self.clip_norm:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.clip_norm)
        scale = self._loss_scale()
        self.optimizer.step()
        if self.accelerator.optimizer_step_was_skipped:
            return False
        return self._loss_scale() >= scale

    def _loss_scale(self) -> float:
        """What fp16's scaler multiplies losses by, and lowers where it leaves a step out, which fused AdamW
        does unnoticed. Reading it waits for the GPU, so it is 1 where no average has to know.
        """
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None or self.average is None else scaler.get_scale()

    def check_finite(self, epoch: int) -> None:
        """Raise NonFiniteLoss, naming `epoch`, unless all trained weights are finite, and all buffers that
        were finite before the training. (A finite loss can have gradients that are not.)
        """
        trained = [p for p in self.system.parameters() if p.requires_grad]
        finite = [tensor.isfinite().all() for tensor in (*trained, *self.finite_buffers)]
        if not torch.stack(finite).all():
            raise NonFiniteLoss(
                f"the weights became NaN or infinite in epoch {epoch}. What was saved before is kept: "
                "lower lr, set clip_norm=1, or use precision=fp32, and start again"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on exactly."""
        scaler, average = self.accelerator.scaler, None
        if self.average is not None:
            count = torch.tensor(self.average.count)
            average = _weights(self.average.system) | {"n_averaged": count}
        return {
            "weights": _weights(self.system),
            "average": average,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; KeyError, ValueError or RuntimeError where it is of another step."""
        for name, part in self.system.parts().items():
            part.load_state_dict(state["weights"][name])
        if self.average is not None:
            for name, part in self.evaluated_system.parts().items():
                part.load_state_dict(state["average"][name])
            self.average.count = int(state["average"]["n_averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        keep_layout_of_weights(self.optimizer)
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def keep_layout_of_weights(optimizer: torch.optim.Optimizer) -> None:
    """Lay out what is kept for a weight like the weight itself: fused kernels pair the two by their place
    in memory, and a run may have been saved in another layout (`channels_last`, or another device).
    """
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                kept[name] = torch.empty_like(weight).copy_(value)


def _weights(system: SegmentationModel) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in system.parts().items()}
