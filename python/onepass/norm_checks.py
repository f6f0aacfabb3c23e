"""The calls of normalizations, checked, and their results as fake tensors: see call_checks.py.

csrc/common/norm_args.h and csrc/norm_call.h make the same checks in the same words; tests/test_norm_errors.py
holds them together.
"""

import torch
from torch import Tensor

from . import checks

ACTIVATIONS = (None, "relu", "leaky_relu", "silu")


def _fail(op, *parts: object) -> None:
    raise RuntimeError(f"{op.name}: " + "".join(map(str, parts)))


# --- memory -----------------------------------------------------------------------------------------------
def is_dense_image(t: Tensor, channels_last: bool) -> bool:
    """Do elements lie without gaps as images, channels, pixels (or images, pixels, channels)?"""
    if t.numel() == 0:
        return True
    pixels = [(t.stride(d), t.shape[d]) for d in range(2, t.dim()) if t.shape[d] != 1]
    channels, images = (t.stride(1), t.shape[1]), (t.stride(0), t.shape[0])
    step = 1
    for stride, size in (
        [channels, *sorted(pixels), images] if channels_last else [*sorted(pixels), channels, images]
    ):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def dense_image(t: Tensor) -> Tensor:
    """The tensor itself where it is dense in one of the two orders, else a copy that is."""
    if is_dense_image(t, False) or is_dense_image(t, True):
        return t
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = t.dim() in formats and t.shape[1] > 1 and t.stride(1) == 1
    return t.contiguous(memory_format=formats[t.dim()] if last else torch.contiguous_format)


def _same_strides(a: Tensor, b: Tensor) -> bool:
    return all(n == 1 or a.stride(d) == b.stride(d) for d, n in enumerate(a.shape))


# --- arguments --------------------------------------------------------------------------------------------
def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _input(op, input: Tensor, act: str | None, values: bool) -> None:
    if input.dim() < 2:
        _fail(op, f"input has shape {list(input.shape)}, expected at least 2 dimensions")
    if input.dtype not in checks.SERVED:
        _fail(
            op, "input has a dtype that is not served, expected torch.float32, float64, bfloat16 or float16"
        )
    if values:
        checks.check_storage(f"{op.name}: input", input)
    if act not in ACTIVATIONS:
        _fail(op, f"act is '{act}', expected None, 'relu', 'leaky_relu' or 'silu'")


def _like_input(
    op, name: str, t: Tensor | None, input: Tensor, values: bool, any_order: bool = False
) -> None:
    if t is None:
        return
    if t.device != input.device:
        _fail(op, f"{name} is on another device than input")
    if t.shape != input.shape:
        _fail(op, f"{name} has shape {list(t.shape)}, expected {list(input.shape)} as input")
    if t.dtype != input.dtype:
        _fail(op, f"{name} has dtype {t.dtype}, expected {input.dtype} as input")
    if values:
        checks.check_storage(f"{op.name}: {name}", t)
    if not any_order and not _same_strides(dense_image(t), dense_image(input)):
        _fail(op, f"{name} has another memory format than input")


def _channels(op, name: str, t: Tensor | None, input: Tensor, values: bool, written: bool = False) -> None:
    if t is None:
        return
    if t.device != input.device:
        _fail(op, f"{name} is on another device than input")
    if t.dim() != 1 or t.shape[0] != input.shape[1]:
        shapes = f"{list(t.shape)}, expected [{input.shape[1]}]: input has shape {list(input.shape)}"
        _fail(op, f"{name} has shape {shapes}")
    wide = arithmetic(input.dtype)
    if t.dtype not in (wide, input.dtype):
        wanted = wide if wide == input.dtype else f"{wide} or {input.dtype}"
        _fail(op, f"{name} has dtype {checks._name(t.dtype)}, expected {wanted} for {input.dtype} input")
    if written:
        checks.check_written(f"{op.name}: {name}", t)
    if values:
        checks.check_storage(f"{op.name}: {name}", t)


def _affine(
    op, input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, values: bool
) -> None:
    _like_input(op, "residual", residual, input, values)
    _channels(op, "weight", weight, input, values)
    _channels(op, "bias", bias, input, values)


def _running(
    op,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    values: bool,
) -> None:
    _channels(op, "running_mean", running_mean, input, values, written=True)
    _channels(op, "running_var", running_var, input, values, written=True)
    counter = num_batches_tracked
    if counter is not None:
        if counter.dtype != torch.int64 or counter.numel() != 1 or counter.device != input.device:
            _fail(op, "num_batches_tracked has to be one torch.int64 element on the device of input")
        if values:
            checks.check_storage(f"{op.name}: num_batches_tracked", counter)
    kept = running_mean is not None or running_var is not None
    if momentum is None and counter is None and kept:
        _fail(op, "momentum is None, which needs num_batches_tracked")


def _eps(op, eps: float, zero: bool) -> None:
    if not (eps >= 0 if zero else eps > 0):
        _fail(op, f"eps is {eps:g}, expected {'>= 0' if zero else '> 0'}")


def _made(op, name: str, t: Tensor, dtype: torch.dtype, numel: int, input: Tensor, values: bool) -> None:
    """What another of these ops has made."""
    if t.dtype != dtype or t.numel() != numel or not t.is_contiguous() or t.device != input.device:
        _fail(
            op,
            f"{name} has {t.numel()} elements, expected {numel}, contiguous, ",
            "as the forward pass of this input makes it",
        )
    if values:
        checks.check_storage(f"{op.name}: {name}", t)


# --- calls ------------------------------------------------------------------------------------------------
def batch_norm_fwd(
    op,
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
    values: bool,
) -> None:
    _input(op, input, act, values)
    _affine(op, input, residual, weight, bias, values)
    _running(op, input, running_mean, running_var, num_batches_tracked, momentum, values)
    _eps(op, eps, zero=False)
    if input.shape[:1].numel() * input.shape[2:].numel() == 1:
        shape = list(input.shape)
        _fail(op, f"expected more than 1 value per channel when training, got input of shape {shape}")


def batch_norm_eval(
    op,
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
    values: bool,
) -> None:
    _input(op, input, act, values)
    _affine(op, input, residual, weight, bias, values)
    _channels(op, "running_mean", running_mean, input, values)
    _channels(op, "running_var", running_var, input, values)
    _eps(op, eps, zero=True)


def batch_norm_stats(op, input: Tensor, *, values: bool) -> None:
    _input(op, input, None, values)


def batch_norm_apply(
    op,
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
    values: bool,
) -> None:
    _input(op, input, act, values)
    _affine(op, input, residual, weight, bias, values)
    _running(op, input, running_mean, running_var, num_batches_tracked, momentum, values)
    _eps(op, eps, zero=False)
    size = 3 * input.shape[1] + 1
    processes = max(1, moments.numel() // size)
    _made(op, "moments", moments, arithmetic(input.dtype), processes * size, input, values)


def _saved(
    op,
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    act: str | None,
    values: bool,
) -> None:
    _input(op, input, act, values)
    _affine(op, input, residual, weight, bias, values)
    _like_input(op, "grad_output", grad_output, input, values, any_order=True)
    _made(op, "stats", stats, arithmetic(input.dtype), 3 * input.shape[1], input, values)
    if mask.numel() > 0:
        _made(op, "mask", mask, torch.uint8, (input.numel() + 7) // 8, input, values)


def batch_norm_bwd(
    op,
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
    values: bool,
) -> None:
    _saved(op, grad_output, input, residual, weight, bias, stats, mask, act, values)


def batch_norm_bwd_stats(
    op,
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
    values: bool,
) -> None:
    _saved(op, grad_output, input, residual, weight, bias, stats, mask, act, values)


def batch_norm_bwd_apply(
    op,
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
    values: bool,
) -> None:
    _saved(op, grad_output, input, residual, weight, bias, stats, mask, act, values)
    _made(op, "sums", sums, arithmetic(input.dtype), 2 * input.shape[1] + 1, input, values)


# --- results as fake tensors ------------------------------------------------------------------------------
def _new_like_input(input: Tensor) -> Tensor:
    return torch.empty_like(dense_image(input))


def keeps_mask(act: str | None, residual: Tensor | None) -> bool:
    """Does a residual hide where the activation lets gradients pass?"""
    return residual is not None and act in ("relu", "leaky_relu")


def new_forward(input: Tensor, residual: Tensor | None, *_args, act=None, saving=True, **_kw):
    stats = input.new_empty((3, input.shape[1]), dtype=arithmetic(input.dtype))
    size = (input.numel() + 7) // 8 if saving and keeps_mask(act, residual) else 0
    return _new_like_input(input), stats, input.new_empty(size, dtype=torch.uint8)


def new_moments(input: Tensor) -> Tensor:
    return input.new_empty(3 * input.shape[1] + 1, dtype=arithmetic(input.dtype))


def new_input_grads(
    _grad_output: Tensor, input: Tensor, residual, _weight, _bias, _stats, mask, *_args, **_kw
):
    wanted = mask.numel() > 0 or residual is not None
    return _new_like_input(input), _new_like_input(input) if wanted else input.new_empty(0)


def _new_affine_grads(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    dweight, dbias = (input.new_empty(0) if t is None else torch.empty_like(t) for t in (weight, bias))
    return dweight, dbias


def new_backward(grad_output: Tensor, input: Tensor, residual, weight, bias, stats, mask, **_kw):
    grads = new_input_grads(grad_output, input, residual, weight, bias, stats, mask)
    return *grads, *_new_affine_grads(input, weight, bias)


def new_backward_sums(_grad_output: Tensor, input: Tensor, _residual, weight, bias, *_args, **_kw):
    sums = input.new_empty(2 * input.shape[1] + 1, dtype=arithmetic(input.dtype))
    return sums, *_new_affine_grads(input, weight, bias)
