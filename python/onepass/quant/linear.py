"""A linear layer in 8 bits, for inference."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from .configs import Int8Config, Int8DynamicConfig

_OPS = torch.ops.onepass


def _state(t: Tensor) -> tuple[int, int]:
    """Another one behind each change in place or of the memory; tensors of inference mode tell less."""
    return t.data_ptr(), 0 if t.is_inference() else t._version


class Int8Linear(nn.Module):
    """y = act(x w' + bias), with weights in 8 bits and a scale for each output.

    The config says what becomes of activations: Int8DynamicConfig quantizes them too, with a scale for each
    row (all but the last dimension) found as they come; Int8WeightOnlyConfig leaves them as they are.

    Args:
        in_features, out_features, bias: as of torch.nn.Linear. The layer begins with zeros: it is made by
            `from_float`, or filled by `load_state_dict`.
        config: Int8DynamicConfig() if not given, or Int8WeightOnlyConfig().
        act: None, "relu", "gelu" or "silu", computed in the same pass.

    state_dict: `weight` (int8 [out_features, in_features]), `weight_scale` (float32 [out_features]), `bias`
    (float32 [out_features]). On the CPU a packed copy of the weight, as the kernels read it, is kept beside:
    one byte more a weight, made by the first call behind a change of the weight, and never saved; another
    backend, if one is put first, is given the weight itself. What is
    written to `weight.data`, or in place under torch.inference_mode, is not seen; load_state_dict always is.

    Shapes: [..., in_features] to [..., out_features], float32, bfloat16 or float16, the output as the input.
    Passes over memory: weights are read once for each block of rows, the output written once, the input as
    the config says. Source of the formula: the config's.
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
        config: Int8Config | None = None,
        act: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.config: Int8Config = config or Int8DynamicConfig()
        self.act = act
        weight = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", torch.ones(out_features, device=device))
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)
        self._packed: Tensor | None = None
        self._packed_of: tuple[Tensor, tuple[int, int]] | None = None

    @classmethod
    def from_float(
        cls, linear: nn.Linear, config: Int8Config | None = None, act: str | None = None
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
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "Int8Linear is for inference: it has no gradient; call it under torch.no_grad()"
            )
        buffers, config = self._buffers, self.config  # a module's own lookup takes longer than a small layer
        return getattr(_OPS, config.op).default(
            input,
            self._readable(),
            buffers["weight_scale"],
            buffers["bias"],
            act=self.act,
            **config.options(),
        )

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        act = f", act={self.act}" if self.act else ""
        return f"{sizes}, bias={self.bias is not None}{act}, {self.config}"

    # --- packing ------------------------------------------------------------------------------------------
    def _readable(self) -> Tensor:
        """The weight as the kernels of its device read it: on the CPU packed, once for each change, where C++
        kernels serve it."""
        if not backends.reads_packed():
            return self.weight
        if self._packed is not None and self._is_packed():
            return self._packed
        if self.weight.device.type != "cpu" or torch.compiler.is_compiling():
            return self.weight  # a graph takes what is there: packed by a call before
        return self._pack()

    def _pack(self) -> Tensor:
        weight = self.weight
        self._packed, self._packed_of = _OPS.int8_pack(weight), (weight, _state(weight))
        return self._packed

    def _is_packed(self) -> bool:
        of, weight = self._packed_of, self._buffers["weight"]
        return of is not None and of[0] is weight and of[1] == _state(weight)

    # What torch.compiler.assume_constant_result does, which imports all of torch._dynamo first.
    _is_packed._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _load_from_state_dict(self, *args: Any) -> None:
        """A layer that was packed is packed anew at once: a compiled model may read it next."""
        super()._load_from_state_dict(*args)
        if self._packed is not None:
            self._packed_of = None
            try:
                if self.weight.device.type == "cpu":
                    self._pack()
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
