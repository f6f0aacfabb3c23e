"""Functions in place of torch.nn.functional's."""

import torch
from torch import Tensor

_OPS = torch.ops.onepass
ACTIVATIONS = (None, "relu", "leaky_relu", "silu")


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    act: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """act((input - mean) / sqrt(var + eps) * weight + bias + residual), over each channel of a batch.

    Arguments up to eps are those of torch.nn.functional.batch_norm.

    Args:
        input: [N, C, ...], float32, float64, bfloat16 or float16, in any memory layout. Channels-last is
            served as it lies, and so is what is contiguous; anything else is copied first.
        running_mean, running_var: [C]; written in training, the statistics in evaluation. Both None:
            nothing is written, or, in evaluation, the batch's own statistics are used.
        weight, bias: [C], of the input's dtype, or float32 for a half input.
        training: with the batch's statistics (mean and biased variance, in one read).
        momentum: of the running statistics; None: they are the average over all batches, which
            num_batches_tracked counts on the device.
        eps: > 0 in training, >= 0 else.
        act: None, "relu", "leaky_relu" or "silu".
        negative_slope: of leaky_relu.
        residual: added before the activation. Like the input in shape, dtype and memory format.
        num_batches_tracked: one int64 element, counted up in training.

    Returns:
        [N, C, ...], in the input's dtype and memory format, as are the gradients of input and residual.

    Passes over memory, each element: training reads the input twice (once where a channel fits a cache) and
    writes the output once; backward reads the output's gradient and the input twice and writes the input's
    gradient. Kept for backward: the input and a few values a channel; one bit an element where relu or
    leaky_relu stand behind a residual; the residual itself where silu does.

    Raises:
        ValueError: one value per channel in training; an eps that is not positive, as torch does.
        RuntimeError: an argument of another shape, dtype, device or memory format, before anything is
        written.

    Source: Ioffe and Szegedy, arXiv:1502.03167, in torch's conventions.
    """
    if training or (running_mean is None and running_var is None):
        _check_training(input, eps)
        tracked = (running_mean, running_var, num_batches_tracked) if training else (None, None, None)
        return _OPS.batch_norm_fwd.default(
            input,
            residual,
            weight,
            bias,
            *tracked,
            momentum=momentum,
            eps=eps,
            act=act,
            negative_slope=negative_slope,
            saving=False,
        )[0]
    if eps < 0.0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if running_mean is None or running_var is None:
        raise ValueError("batch_norm needs both running_mean and running_var, or none of them, in evaluation")
    return _OPS.batch_norm_eval.default(
        input,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        eps=eps,
        act=act,
        negative_slope=negative_slope,
        saving=False,
    )[0]


def _check_training(input: Tensor, eps: float) -> None:
    """torch's own errors."""
    few = input.dim() >= 2 and input.numel() <= input.size(1)  # a quick look first
    if few and input.shape[:1].numel() * input.shape[2:].numel() == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.size()}"
        )
    if eps <= 0.0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
