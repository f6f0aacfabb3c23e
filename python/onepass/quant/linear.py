"""A linear layer in 8 bits, for inference."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from .configs import Int8DynamicConfig

_OPS = torch.ops.onepass


class Int8Linear(nn.Module):
    """y = act(x w' + bias), multiplied in 8 bits with exact sums.

    Weights have a scale for each output; activations one for each row (all but the last dimension), found as
    they come. A row that holds inf or NaN becomes NaN.

    Args:
        in_features, out_features, bias: as of torch.nn.Linear. The layer begins with zeros: it is made by
            `from_float`, or filled by `load_state_dict`.
        config: how activations are quantized.
        act: None, "relu", "gelu" or "silu", computed in the same pass.

    state_dict: `weight` (int8 [out_features, in_features]), `weight_scale` (float32 [out_features]), `bias`
    (float32 [out_features]). On the CPU a packed copy of the weight, as the kernels read it, is kept beside:
    one byte more a weight, made by the first call behind a change of the weight, and never saved.

    Shapes: [..., in_features] to [..., out_features], float32, bfloat16 or float16, the output as the input.
    Passes over memory: the input is read twice (the second time from the cache), weights once for each block
    of rows, the output written once.

    Source: W8A8 with a scale a token and a scale an output channel, as in Dettmers et al., arXiv:2208.07339.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        config: Int8DynamicConfig | None = None,
        act: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.config, self.act = config or Int8DynamicConfig(), act
        weight = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", torch.ones(out_features, device=device))
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)
        self._packed: Tensor | None = None
        self._packed_of: tuple[Tensor, int] | None = None

    @classmethod
    def from_float(
        cls, linear: nn.Linear, config: Int8DynamicConfig | None = None, act: str | None = None
    ) -> "Int8Linear":
        """The layer that stands for this one, whose weights are rounded to the nearest of 255 levels."""
        device = linear.weight.device
        made = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            config=config,
            act=act,
            device=device,
        )
        values, scale, _ = _OPS.quantize(linear.weight.detach().float())
        made.weight.copy_(values)
        made.weight_scale.copy_(scale.view(-1))
        if made.bias is not None:
            made.bias.copy_(linear.bias.detach())
        made._readable()
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Raises RuntimeError where a gradient is asked for."""
        if torch.is_grad_enabled() and input.requires_grad:
            raise RuntimeError(
                "Int8Linear is for inference: it has no gradient; call it under torch.no_grad()"
            )
        weight = self._readable()
        return _OPS.int8_linear(
            input,
            weight,
            self.weight_scale,
            self.bias,
            symmetric=self.config.symmetric,
            bits=self.config.act_bits,
            act=self.act,
        )

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        act = f", act={self.act}" if self.act else ""
        return f"{sizes}, bias={self.bias is not None}{act}, {self.config}"

    # --- packing ------------------------------------------------------------------------------------------
    def _readable(self) -> Tensor:
        """The weight as the kernels of its device read it: on the CPU packed, once for each change."""
        if self.weight.device.type != "cpu" or not backends.compiled():
            return self.weight
        fresh = self._packed is not None and self._is_packed()
        if (
            not fresh and not torch.compiler.is_compiling()
        ):  # in a graph what is there: packed by a call before
            self._packed = _OPS.int8_pack(self.weight)
            self._packed_of = (self.weight, self._changes())
            fresh = True
        return self._packed if fresh and self._packed is not None else self.weight

    def _changes(self) -> int:
        """Grows with each change in place; tensors of inference mode do not tell."""
        return 0 if self.weight.is_inference() else self.weight._version

    def _is_packed(self) -> bool:
        of = self._packed_of
        return of is not None and of[0] is self.weight and of[1] == self._changes()

    # What torch.compiler.assume_constant_result does, which imports all of torch._dynamo first.
    _is_packed._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _load_from_state_dict(self, *args: Any) -> None:
        """A layer that was packed is packed anew at once: a compiled model may read it next."""
        super()._load_from_state_dict(*args)
        if self._packed is not None:
            try:
                self._readable()
            except RuntimeError as refused:
                args[-1].append(f"{args[1]}weight: {refused}")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None, "_packed_of": None}

    def _apply(self, fn: Any, recurse: bool = True) -> "Int8Linear":
        """Scales and bias stay what they are, in float32, whatever dtype the model is turned to."""

        def kept(t: Tensor) -> Tensor:
            made = fn(t)
            return made if made.dtype == t.dtype else t.to(made.device)

        super()._apply(kept, recurse)
        return self
