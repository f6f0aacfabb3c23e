"""The cases of batch normalization: forward, by given statistics, backward, and all of it in halves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .layouts import GAP

Image = Callable[[Tensor], Tensor]
Settings = dict[str, Any]

HALF = (torch.bfloat16, torch.float16)


# --- memory -----------------------------------------------------------------------------------------------
def _dense(t: Tensor) -> Tensor:
    return t


def _channels_last(t: Tensor) -> Tensor:
    """Channels innermost, for any number of dimensions."""
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def _turned(t: Tensor) -> Tensor:
    """Rows and columns of pixels in the other order."""
    return t.transpose(2, 3).contiguous().transpose(2, 3)


def _misaligned(t: Tensor) -> Tensor:
    """The same strides, one element further in memory."""
    room = t.new_full((t.numel() + 2,), GAP)
    view = room[1 : 1 + t.numel()].as_strided(t.shape, t.stride(), 1)
    return view.copy_(t)


def _misaligned_last(t: Tensor) -> Tensor:
    return _misaligned(_channels_last(t))


def _some_channels(t: Tensor) -> Tensor:
    """Channels 1 .. C of a tensor that has two more."""
    room = t.new_full((t.shape[0], t.shape[1] + 2, *t.shape[2:]), GAP)
    view = room[:, 1:-1]
    view.copy_(t)
    return view


def _some_channels_last(t: Tensor) -> Tensor:
    return _some_channels(t).contiguous(memory_format=torch.channels_last)[:, :]


def _every_second_image(t: Tensor) -> Tensor:
    view = t.new_full((2 * t.shape[0], *t.shape[1:]), GAP)[::2]
    view.copy_(t)
    return view


def _one_image(t: Tensor) -> Tensor:
    """The first image everywhere: other values."""
    return t[:1].expand_as(t)


def _channels_outermost(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1)


# --- values -----------------------------------------------------------------------------------------------
def _image(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    shape: Sequence[int],
    mean: float = 0.0,
    std: float = 1.0,
    spoil: Sequence[float] = (),
) -> Tensor:
    """spoil: values that stand in as many channels, one each."""
    values = torch.randn(tuple(shape), generator=rng, dtype=torch.float64) * std
    offsets = torch.randn(shape[1], generator=rng, dtype=torch.float64) * mean
    values += offsets.view(1, -1, *[1] * (len(shape) - 2))
    for channel, value in enumerate(spoil):
        values[len(values) // 2, channel].view(-1)[-1] = value
    return values.to(device, dtype)


def _vector(rng: torch.Generator, n: int, dtype: torch.dtype, device: str, low: float = -1.0) -> Tensor:
    return (torch.rand(n, generator=rng, dtype=torch.float64) * (1.5 - low) + low).to(device, dtype)


def _affine(
    rng: torch.Generator, dtype: torch.dtype, device: str, channels: int, weight: bool, bias: bool, half: bool
) -> dict[str, Tensor | None]:
    """half: parameters in the input's dtype, where that is a half one."""
    wide = torch.float32 if dtype in HALF and not half else dtype
    scale, shift = _vector(rng, channels, wide, device), _vector(rng, channels, wide, device)
    return {"weight": scale if weight else None, "bias": shift if bias else None}


def _options(act: str | None, negative_slope: float) -> Settings:
    return {"act": act, "negative_slope": negative_slope}


def forward(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    op: str,
    shape: Sequence[int] = (4, 6, 5, 7),
    act: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    weight: bool = True,
    bias: bool = True,
    half: bool = False,
    running: bool = True,
    counted: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    saving: bool = True,
    layout: Image = _dense,
    processes: int = 3,
    **values: Any,
) -> Settings:
    """Of batch_norm_fwd, batch_norm_eval or batch_norm_apply."""
    channels = shape[1]
    input = _image(rng, dtype, device, shape, **values)
    z = _image(rng, dtype, device, shape) if residual else None
    call: Settings = {"input": layout(input), "residual": None if z is None else layout(z)}
    call |= _affine(rng, dtype, device, channels, weight, bias, half)
    wide = torch.float32 if dtype in HALF and not half else dtype
    statistics: Settings = {
        "running_mean": _vector(rng, channels, wide, device),
        "running_var": _vector(rng, channels, wide, device, low=0.1),
    }
    if op == "batch_norm_eval":
        return {**call, **statistics, "eps": eps, **_options(act, negative_slope), "saving": saving}
    if op == "batch_norm_apply":
        call["moments"] = _moments(rng, dtype, device, channels, processes)
    if not running:
        statistics = dict.fromkeys(statistics)
    counter = torch.tensor(6, device=device) if counted else None
    return {
        **call,
        **statistics,
        "num_batches_tracked": counter,
        "momentum": momentum,
        "eps": eps,
        **_options(act, negative_slope),
        "saving": saving,
    }


def _moments(rng: torch.Generator, dtype: torch.dtype, device: str, channels: int, processes: int) -> Tensor:
    """As batch_norm_stats leaves them; the last process, of several, has no elements."""
    wide = torch.float32 if dtype in HALF else dtype
    rows = torch.randn(processes, 3 * channels + 1, generator=rng, dtype=torch.float64)
    rows[:, channels : 2 * channels] *= 1e-8
    rows[:, 2 * channels :] = rows[:, 2 * channels :].abs() * 50
    rows[:, -1] = torch.arange(20, 20 + processes)
    if processes > 1:
        rows[-1] = 0
    return rows.to(device, wide).flatten()


def stats(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shape: Sequence[int] = (4, 6, 5, 7),
    layout: Image = _dense,
    **values: Any,
) -> Settings:
    values = {name: v for name, v in values.items() if name in ("mean", "std", "spoil")}
    return {"input": layout(_image(rng, dtype, device, shape, **values))}


def backward(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    op: str,
    shape: Sequence[int] = (4, 6, 5, 7),
    act: str | None = None,
    negative_slope: float = 0.01,
    residual: bool = False,
    weight: bool = True,
    bias: bool = True,
    half: bool = False,
    layout: Image = _dense,
    grad_layout: Image | None = None,
    training: bool = True,
    **values: Any,
) -> Settings:
    """Of batch_norm_bwd, batch_norm_bwd_stats or batch_norm_bwd_apply."""
    channels, wide = shape[1], torch.float32 if dtype in HALF else dtype
    values = {name: v for name, v in values.items() if name in ("mean", "std", "spoil")}
    input = _image(rng, dtype, device, shape, **values)
    across = [d for d in range(len(shape)) if d != 1]
    x = input.double()
    mean = x.mean(across) if x.numel() else x.new_zeros(channels)
    variance = x.var(across, unbiased=False) if x.numel() else x.new_zeros(channels)
    high = mean.to(wide)
    saved = torch.stack([high, (mean - high.double()).to(wide), (variance + 1e-5).rsqrt().to(wide)])
    masked = residual and act in ("relu", "leaky_relu")
    bits = torch.randint(256, ((input.numel() + 7) // 8,), generator=rng, dtype=torch.uint8).to(device)
    if masked and input.numel() % 8:
        bits[-1] &= 2 ** (input.numel() % 8) - 1
    z = _image(rng, dtype, device, shape) if residual and act == "silu" else None
    call: Settings = {
        "grad_output": (grad_layout or layout)(_image(rng, dtype, device, shape)),
        "input": layout(input),
        "residual": None if z is None else layout(z),
        **_affine(rng, dtype, device, channels, weight, bias, half),
        "stats": saved,
        "mask": bits if masked else bits[:0],
    }
    if op == "batch_norm_bwd_apply":
        sums = torch.randn(2 * channels + 1, generator=rng, dtype=torch.float64) * 10
        sums[-1] = 3 * max(1, input.numel() // channels)
        call["sums"] = sums.to(device, wide)
    call |= _options(act, negative_slope)
    return {**call, "training": training} if op == "batch_norm_bwd" else call


# --- the cases --------------------------------------------------------------------------------------------
_ACTS: dict[str, Settings] = {
    "plain": {},
    "relu": {"act": "relu"},
    "leaky_relu": {"act": "leaky_relu", "negative_slope": 0.2},
    "silu": {"act": "silu"},
    "residual": {"residual": True},
    "residual_relu": {"residual": True, "act": "relu"},
    "residual_leaky_relu": {"residual": True, "act": "leaky_relu", "negative_slope": -0.3},
    "residual_silu": {"residual": True, "act": "silu"},
}
_BLOCK: Settings = {"residual": True, "act": "relu"}
# Pixels and channels below, at and above the widths of a vector, of a line of memory, of a chunk and of a
# tile.
_SHAPES: dict[str, Settings] = {
    "rows": {"shape": (33, 17), "act": "relu"},
    "sequences": {"shape": (5, 9, 31), **_BLOCK},
    "volumes": {"shape": (2, 5, 3, 4, 5), **_BLOCK},
    "one_pixel": {"shape": (16, 40, 1, 1), **_BLOCK},
    "one_image": {"shape": (1, 24, 9, 9), **_BLOCK},
    "one_channel": {"shape": (3, 1, 11, 3), **_BLOCK},
    "few_pixels": {"shape": (9, 16, 1, 3), **_BLOCK},
    "line_of_pixels": {"shape": (3, 5, 4, 16), **_BLOCK},
    "many_pixels": {"shape": (2, 3, 65, 67), **_BLOCK},
    "long_run": {"shape": (2, 3, 96, 96), "act": "relu"},
    "many_channels": {"shape": (3, 1030, 3, 3), **_BLOCK},
    "empty": {"shape": (0, 4, 3, 3), **_BLOCK},
    "no_pixels": {"shape": (2, 4, 0, 3), **_BLOCK},
}
_LAST: dict[str, Settings] = {
    f"{name}_last": {**settings, "layout": _channels_last}
    for name, settings in {**_ACTS, **_SHAPES}.items()
    if name not in ("rows", "empty", "no_pixels")
}
_MEMORY: dict[str, Settings] = {
    "turned": {"layout": _turned, **_BLOCK},
    "misaligned": {"layout": _misaligned, "shape": (4, 6, 5, 8), **_BLOCK},
    "misaligned_last": {"layout": _misaligned_last, "shape": (4, 16, 5, 7), **_BLOCK},
    "some_channels": {"layout": _some_channels, **_BLOCK},
    "some_channels_last": {"layout": _some_channels_last, **_BLOCK},
    "every_second_image": {"layout": _every_second_image, **_BLOCK},
    "channels_outermost": {"layout": _channels_outermost, **_BLOCK},
    "one_image_expanded": {"layout": _one_image, "act": "relu"},
}
_VALUES: dict[str, Settings] = {
    "no_affine": {"weight": False, "bias": False, "act": "relu"},
    "no_bias": {"bias": False, "act": "relu"},
    "no_weight": {"weight": False},
    "half_parameters": {"half": True, **_BLOCK},
    "far_from_zero": {"mean": 100.0, "act": "relu"},
    "large": {"std": 1e3, "mean": 1e3},
    "constant": {"std": 0.0, "mean": 3.0},
    # Large enough for two threads, for results past the caches, and for several parts; odd in every way.
    "threads": {"shape": (7, 37, 41, 43), **_BLOCK},
    "threads_last": {"shape": (7, 37, 41, 43), "layout": _channels_last, **_BLOCK},
    "past_the_caches": {"shape": (5, 64, 61, 59), **_BLOCK},
    "past_the_caches_last": {"shape": (5, 64, 61, 59), "layout": _channels_last, **_BLOCK},
    # A channel's pixels are whole vectors here, which go there as they are.
    "past_the_caches_whole": {"shape": (10, 64, 60, 56), **_BLOCK},
}
_SPOILT: dict[str, Settings] = {
    "nan": {"spoil": (float("nan"),), "act": "relu"},
    "inf": {"spoil": (float("inf"), float("-inf"), 3.0), "act": "relu"},
    "huge": {"std": 1e30, "act": "relu"},
    "tiny": {"std": 1e-30},
}
_COMMON = {**_ACTS, **_SHAPES, **_LAST, **_MEMORY, **_VALUES}
_RUNNING: dict[str, Settings] = {
    "no_running": {"running": False, "counted": False},
    "not_counted": {"counted": False},
    "average": {"momentum": None},
    "momentum_zero": {"momentum": 0.0},
    "not_saving": {"saving": False, **_BLOCK},
    "large_eps": {"eps": 0.5},
}
FORWARD = {**_COMMON, **_SPOILT, **_RUNNING}
EVAL = {**_COMMON, "not_saving": _RUNNING["not_saving"], "nan": _SPOILT["nan"]}
STATS = {
    name: settings
    for name, settings in {**_COMMON, **_SPOILT}.items()
    if not any(key in settings for key in ("act", "residual", "weight", "bias", "half"))
    or "shape" in settings
}
APPLY = {
    **_ACTS,
    **_SHAPES,
    **_RUNNING,
    "alone": {"processes": 1, **_BLOCK},
    "plain_last": _LAST["plain_last"],
}
BACKWARD = {
    **_COMMON,
    "gradient_last": {"grad_layout": _channels_last, **_BLOCK},
    "gradient_expanded": {"grad_layout": _one_image, **_BLOCK},
    "gradient_dense": {"layout": _channels_last, "grad_layout": _dense, **_BLOCK},
}
GIVEN = {f"{name}_given": {**settings, "training": False} for name, settings in {**_ACTS, **_LAST}.items()}
HALVES = {
    **_ACTS,
    **_SHAPES,
    "plain_last": _LAST["plain_last"],
    "residual_relu_last": _LAST["residual_relu_last"],
}

# What an activation does is tried in every dtype, how memory lies in two, which differ in width.
_NARROW = (torch.float32, torch.bfloat16)
_EVERY = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FEW = {
    # float16 has no such numbers.
    "huge": (torch.float32, torch.float64, torch.bfloat16),
    "tiny": (torch.float32, torch.float64, torch.bfloat16),
    # A float64 mean is off by a rounding, which the least deviation makes large.
    "constant": (torch.float32, *HALF),
    "half_parameters": HALF,
    "past_the_caches": (torch.float32,),
    "past_the_caches_last": (torch.float32,),
}


def dtypes(name: str) -> tuple[torch.dtype, ...]:
    plain = name.removesuffix("_given").removesuffix("_last")
    every = plain in _ACTS or name in _SPOILT or name in ("far_from_zero", "large")
    return _FEW.get(name, _EVERY if every else _NARROW)
