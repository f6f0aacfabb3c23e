"""SyncBatchNorm: batch normalization over the batches of a group of processes, one collective each way."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..norm_checks import dense_image
from .batch_norm import _BatchNorm

_OPS = torch.ops.onepass


def _all_gather(everyone: Tensor, own: Tensor, group: Any) -> None:
    """all_gather_into_tensor, which torch 2.13 calls by another name and deprecates by this one."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(everyone, own, group=group)


class _SyncNorm(Function):
    """batch_norm_stats, all_gather, batch_norm_apply; batch_norm_bwd_stats, all_reduce, batch_norm_bwd_apply.

    A process without elements goes the same way: its moments and sums are zeros that count nothing, so that
    nobody has to look into them, and no process waits for its device.
    """

    @staticmethod
    def forward(
        ctx: Any,
        group: Any,
        options: dict[str, Any],
        input: Tensor,
        residual: Tensor | None,
        *rest: Tensor | None,
    ) -> Tensor:
        """rest: weight, bias, running_mean, running_var, num_batches_tracked; the last three are written."""
        input = dense_image(input)  # once, instead of once in each of four ops
        weight, bias, *tracked = rest
        moments = _OPS.batch_norm_stats(input)
        everyone = moments.new_empty(dist.get_world_size(group) * moments.numel())
        _all_gather(everyone, moments, group)
        output, stats, mask = _OPS.batch_norm_apply(
            input, residual, weight, bias, everyone, *tracked, **options
        )
        ctx.group, ctx.with_residual = group, residual is not None
        ctx.options = {key: options[key] for key in ("act", "negative_slope")}
        kept = residual if options["act"] == "silu" else None
        ctx.save_for_backward(input, kept, weight, bias, stats, mask)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        input, options = saved[0], ctx.options
        if grad_output.stride() != input.stride():  # as that of a mean is: both ops would copy it
            grad_output = torch.empty_like(input).copy_(grad_output)
        sums, dweight, dbias = _OPS.batch_norm_bwd_stats(grad_output, *saved, **options)
        # Also where the input needs no gradient: whether it does may differ between processes.
        dist.all_reduce(sums, group=ctx.group)
        dx = dresidual = grad_output
        through_act = ctx.with_residual and options["act"] is not None
        if input.numel() > 0 and (ctx.needs_input_grad[2] or through_act):
            dx, passed = _OPS.batch_norm_bwd_apply(grad_output, *saved, sums, **options)
            dresidual = passed if through_act else grad_output
        grads = (None, None, dx, dresidual, dweight, dbias, None, None, None)
        return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=True))


# Not a torch.nn.SyncBatchNorm: DistributedDataParallel refuses those on the CPU.
class SyncBatchNorm(_BatchNorm):
    """Batch normalization by the statistics of the batches of all processes, for torch.distributed training.

    Constructor and state_dict are torch.nn.SyncBatchNorm's; unlike it, this one runs on any device and
    process group, gloo on the CPU too. In evaluation, without an initialized process group, and in a group
    of one process, it does what onepass.nn.BatchNorm2d does, for any number of dimensions.

    Args:
        process_group: whose processes share their statistics; None: all.
        act: None, "relu", "leaky_relu" or "silu", applied in the same pass.
        negative_slope: of leaky_relu.
        All others: torch.nn.SyncBatchNorm.

    forward(input, residual=None): input [N, C, ...], float32, float64, bfloat16 or float16; the others'
    shapes and dtypes, memory formats, and what is kept for backward: onepass.nn.functional.batch_norm.
    Sizes, but for C, may differ between processes. Where N is 0 the output is empty and gradients are zero,
    and the others do not notice. float64 has to be the dtype on all processes or on none.

    Written in training: running_mean and running_var, of the whole batch and with the same bits everywhere,
    and num_batches_tracked. Gradients of weight and bias are those of the process's own part of the batch:
    DistributedDataParallel averages them. Gradients cannot be differentiated again.

    Passes over memory, each element: forward reads the input twice and writes the output once; backward reads
    the output's gradient and the input twice and writes the input's gradient.

    Collectives, in training: forward one all_gather of 3 * C + 1 elements a process, backward one
    all_reduce of 2 * C + 1, in float32 (float64 for float64 input). No process waits for its device.

    Raises:
        ValueError: an input of fewer than 2 dimensions; in training, an eps that is not positive; in a group
            of one process, one value per channel in training.
        RuntimeError: an argument of another shape, dtype, device or memory format. Nothing is written then,
            but the process may have taken part in the all_gather.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            act=act,
            negative_slope=negative_slope,
        )
        self.process_group = process_group

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual), with the statistics of all processes: see the class."""
        if not (self.training and self._has_company()):
            return super().forward(input, residual)
        self._check_input_dim(input)
        if self.eps <= 0.0:  # in the words of functional.batch_norm, and before anyone waits for this process
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")
        tracked: tuple[Tensor | None, ...] = (None, None, None)
        if self.track_running_stats:
            tracked = (self.running_mean, self.running_var, self.num_batches_tracked)
        options = {
            # Without a counter there is no average of all batches: see _BatchNorm.
            "momentum": 0.0 if self.momentum is None and tracked[2] is None else self.momentum,
            "eps": self.eps,
            "act": self.act,
            "negative_slope": self.negative_slope,
            "saving": torch.is_grad_enabled(),
        }
        return _SyncNorm.apply(self.process_group, options, input, residual, self.weight, self.bias, *tracked)

    def _has_company(self) -> bool:
        """False, too, in a process that is not of the group."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Replaces all BatchNorm1d, 2d, 3d and SyncBatchNorm within a module, torch's and onepass's.

        Args:
            module: changed in place. Parameters and buffers stay the same objects, so that optimizers over
                them and state_dicts remain valid. act, negative_slope, training and qconfig are kept, hooks
                are not, as by torch. What stands in several places is replaced in all of them, by one module.
            process_group: of each of the new modules.

        Returns:
            The module, or what replaces it.
        """
        return cls._convert(module, process_group, {})

    @classmethod
    def _convert(cls, module: nn.Module, process_group: Any, done: dict[nn.Module, nn.Module]) -> nn.Module:
        if module not in done:
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            done[module] = cls._in_place_of(module, process_group) if is_norm else module
            for name, child in module._modules.items():  # named_children names a module once
                if child is not None:
                    done[module]._modules[name] = cls._convert(child, process_group, done)
        return done[module]

    @classmethod
    def _in_place_of(cls, norm: Any, process_group: Any) -> "SyncBatchNorm":
        made = cls(
            norm.num_features,
            norm.eps,
            norm.momentum,
            norm.affine,
            norm.track_running_stats,
            process_group,
            "meta",  # nothing is allocated: all of it is replaced
            bias=norm.bias is not None,
            act=getattr(norm, "act", None),
            negative_slope=getattr(norm, "negative_slope", 0.01),
        )
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(made, name, getattr(norm, name))
        made.training = norm.training
        if hasattr(norm, "qconfig"):
            made.qconfig = norm.qconfig
        return made
