"""Batch normalization: the ops batch_norm_*, with the arguments of the schemas in onepass/ops.py.

Memory contract. Forward: `measure` (norm_moments.py) reads the input once; `normalise_all` (norm_apply.py)
reads the input, and the residual, once and writes the output, and a bit an element where backward needs it.
Backward: `measure_grads` and `grads_of_inputs` (norm_backward.py) read the gradient and the input once each,
and the mask or the residual where the activation needs it; the second writes the input's gradient, and that
of the residual where it is wanted. Two launches each way: whichever program is the last to finish on a block
of channels merges what all have found there, and leaves statistics and coefficients on the device. Where the
statistics are given, a small launch makes these (`settle_*`, norm_channels.py). Nothing waits for the device.
What is not dense goes through copies. Sums run in an order that the shape alone decides: the same bits in
every run.
"""

import torch
from torch import Tensor

from .amp import _bits
from .norm_channels import settle_moments, settle_running
from .norm_launch import Backward, Results, forward, vector, without_gaps
from .norm_moments import measure
from .norm_plan import Image


# --- forward ----------------------------------------------------------------------------------------------
@torch.no_grad()
def batch_norm_fwd(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    *,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    act: str | None = None,
    negative_slope: float = 0.01,
    saving: bool = True,
) -> Results:
    if input.numel() == 0:
        return batch_norm_apply(
            input, residual, weight, bias, batch_norm_stats(input), running_mean, running_var,
            num_batches_tracked, momentum=momentum, eps=eps, act=act, negative_slope=negative_slope,
            saving=saving,
        )  # fmt: skip
    image = Image(input)
    numbers = (num_batches_tracked, _bits(eps), _bits(momentum or 0.0))

    def settle(stats: Tensor, table: Tensor) -> None:
        with without_gaps(running_mean, running_var) as statistics:
            after = (stats, table, vector(weight), vector(bias), *statistics, *numbers)
            image.measure(measure, 3, (image.x,), after, AVERAGE=momentum is None)

    with torch.cuda.device_of(input):
        return forward(image, settle, residual, num_batches_tracked, act, negative_slope, saving)


@torch.no_grad()
def batch_norm_eval(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float = 1e-5,
    act: str | None = None,
    negative_slope: float = 0.01,
    saving: bool = True,
) -> Results:
    image = Image(input)

    def settle(stats: Tensor, table: Tensor) -> None:
        vectors = map(vector, (weight, bias))
        statistics = (running_mean.contiguous(), running_var.contiguous())
        image.settle(settle_running, *statistics, stats, table, *vectors, _bits(eps))

    with torch.cuda.device_of(input):
        return forward(image, settle, residual, None, act, negative_slope, saving)


@torch.no_grad()
def batch_norm_stats(input: Tensor) -> Tensor:
    image = Image(input)
    if image.numel == 0:
        return image.new(3 * image.channels + 1).zero_()
    moments = image.new(3 * image.channels + 1)
    with torch.cuda.device_of(input):
        after = (moments, None, None, None, None, None, None, 0, 0)
        image.measure(measure, 3, (image.x,), after, AVERAGE=False)
    return moments


@torch.no_grad()
def batch_norm_apply(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    *,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    act: str | None = None,
    negative_slope: float = 0.01,
    saving: bool = True,
) -> Results:
    image = Image(input)
    processes = moments.numel() // (3 * image.channels + 1)
    numbers = (num_batches_tracked, _bits(eps), _bits(momentum or 0.0), processes)

    def settle(stats: Tensor, table: Tensor) -> None:
        with without_gaps(running_mean, running_var) as statistics:
            vectors = (stats, table, vector(weight), vector(bias), *statistics)
            image.settle(settle_moments, moments, *vectors, *numbers, AVERAGE=momentum is None)

    with torch.cuda.device_of(input):
        return forward(image, settle, residual, num_batches_tracked, act, negative_slope, saving)


# --- backward ---------------------------------------------------------------------------------------------
@torch.no_grad()
def batch_norm_bwd(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    *,
    act: str | None = None,
    negative_slope: float = 0.01,
    training: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(input):
        saved = Backward(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
        table, empty = saved.table(), saved.image.numel == 0
        grads = saved.affine_grads(fill=empty)
        if training or weight is not None or bias is not None:
            if not empty:
                saved.measure(table, None, grads)
        else:
            saved.settle(table, None)
        return *saved.input_grads(table, not training), *grads


@torch.no_grad()
def batch_norm_bwd_stats(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    *,
    act: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(input):
        saved = Backward(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
        empty = saved.image.numel == 0
        sums, grads = saved.image.new(2 * saved.image.channels + 1), saved.affine_grads(fill=empty)
        if empty:
            sums.zero_()
        else:
            saved.measure(None, sums, grads)
        return sums, *grads


@torch.no_grad()
def batch_norm_bwd_apply(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    sums: Tensor,
    *,
    act: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(input):
        saved = Backward(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
        table = saved.table()
        saved.settle(table, sums)
        return saved.input_grads(table, given=False)
