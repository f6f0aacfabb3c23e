"""BatchNorm1d, BatchNorm2d, BatchNorm3d: torch's modules with residual and activation in the same pass."""

from typing import Any

import torch
from torch import Tensor, nn

from . import functional


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the three share. State, its keys and its hooks are torch's."""

    act: str | None
    negative_slope: float

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if affine and not bias:
            self.register_parameter("bias", None)
        if act not in functional.ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}: act is {act!r}, expected one of {functional.ACTIVATIONS}"
            )
        self.act, self.negative_slope = act, negative_slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual); shapes, dtypes, errors: functional.batch_norm."""
        self._check_input_dim(input)
        training, tracks = self.training, self.track_running_stats
        counter = self.num_batches_tracked if training and tracks else None
        # Without a counter torch has no average of all batches either: running statistics stay as they are.
        momentum = 0.0 if self.momentum is None and counter is None else self.momentum
        return functional.batch_norm(
            input,
            self.running_mean if tracks or not training else None,
            self.running_var if tracks or not training else None,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            act=self.act,
            negative_slope=self.negative_slope,
            residual=residual,
            num_batches_tracked=counter,
        )

    def extra_repr(self) -> str:
        slope = f", negative_slope={self.negative_slope}" if self.act == "leaky_relu" else ""
        return super().extra_repr() + (f", act={self.act!r}{slope}" if self.act else "")


_MORE = """

    Constructor and state_dict are torch.nn.{name}'s; in its place in a model it trains alike.

    Args:
        act: None, "relu", "leaky_relu" or "silu", applied in the same pass. torch's own conversions know
            nothing of it and drop it: use SyncBatchNorm.convert_sync_batchnorm and fold_bn of onepass.nn.
        negative_slope: of leaky_relu.
        All others: torch.nn.{name}.

    forward(input, residual=None): input {shapes}; a residual, like the input in shape, dtype and memory
    format, is added before the activation. Passes over memory, what is kept for backward and errors:
    onepass.nn.functional.batch_norm. momentum=None averages without waiting for the device.
    """


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    __doc__ = "Batch normalization of [N, C] or [N, C, L]." + _MORE.format(
        name="BatchNorm1d", shapes="[N, C] or [N, C, L]"
    )


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    __doc__ = "Batch normalization of images." + _MORE.format(name="BatchNorm2d", shapes="[N, C, H, W]")


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    __doc__ = "Batch normalization of volumes." + _MORE.format(name="BatchNorm3d", shapes="[N, C, D, H, W]")
