"""Batch normalization on a GPU: modules beside torch's, large layers, bits. test_gpu.py compares the ops."""

import pytest
import torch
from gpu_helpers import each_variant, marks
from gpu_norm_helpers import (
    SHAPE,
    Images,
    each_dtype,
    each_layout,
    each_momentum,
    each_residual,
    images,
    near,
    norm,
    same_bits,
    state,
    step,
)
from onepass import nn as onn
from onepass import use_backend
from onepass.testing import Variant
from torch import Tensor, nn
from torch.nn import functional

pytestmark = marks

LAYERS = (
    (8, 64, 56, 56),  # a channel fits the shared memory of a few blocks
    (2, 3, 723, 725),  # it does not, and its rows do not begin where vectors do
    (8, 2048, 7, 7),
    (4, 5, 7, 11, 13),
    (2, 3, 4099),
    (1000, 33),
    (300, 40, 1, 1),
)
EDGE = 1e-3  # of a pre-activation, about zero: there a ReLU may be on for one and off for the other


class Plain(nn.Module):
    """What a ResNet does with torch's module, and ours stands for."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        return functional.relu(y if z is None else y + z)


def off_the_edge(module: nn.Module, x: Tensor, z: Tensor | None, dy: Tensor) -> Images:
    """With no gradient where rounding decides whether a ReLU is on."""
    v = functional.batch_norm(x.double(), None, None, module.weight.double(), module.bias.double(), True)
    v = v if z is None else v + z.double()
    return x, z, dy * (v.detach().abs() > EDGE)


@each_variant
@each_layout
@each_dtype
@each_residual
@each_momentum
def test_trains_as_torch_does(
    variant: Variant, layout: str, dtype: torch.dtype, residual: bool, momentum: float | None
):
    """Steps of SGD, and evaluation after them. torch computes in float32, from the same inputs."""
    mine = norm(act="relu", momentum=momentum)
    its = Plain(norm(nn.BatchNorm2d, momentum=momentum))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    with variant.use():
        for t in range(5):
            given = off_the_edge(mine, *images(t, layout, dtype, residual))
            found = step(mine, *given)
            right = step(its, *(None if i is None else i.float() for i in given))
            assert found[0].stride() == found[1].stride() == given[0].stride() and found[0].dtype == dtype
            pairs = [*zip(found, right, strict=True), *zip(state(mine), state(its), strict=True)]
            for got, want in pairs:
                near(got, want, tolerance)
            for module, grads in ((mine, found), (its, right)):
                with torch.no_grad():
                    for p, g in zip(module.parameters(), grads[-2:], strict=True):
                        p.sub_(g, alpha=1e-3)
        x, z, _ = images(7, layout, dtype, residual)
        y = mine.eval()(x, z)
    near(y, its.eval()(x.float(), None if z is None else z.float()), tolerance)


@each_variant
@each_layout
@each_residual
@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: "x".join(map(str, shape)))
def test_layers_of_all_sizes(variant: Variant, layout: str, residual: bool, shape: tuple[int, ...]):
    """Against the reference in float64, on the same device."""
    cls = {4: onn.BatchNorm2d, 5: onn.BatchNorm3d}.get(len(shape), onn.BatchNorm1d)
    mine, its = (norm(cls, shape[1], act="relu") for _ in range(2))
    given = off_the_edge(mine, *images(0, layout, residual=residual, shape=shape))
    with variant.use():
        found = step(mine, *given)
    with use_backend("reference"):
        right = step(its, *given)
    for got, want in zip([*found, *state(mine)], [*right, *state(its)], strict=True):
        near(got, want, 2e-5)


@each_variant
@each_layout
@each_dtype
@pytest.mark.parametrize("shape", (SHAPE, LAYERS[0]), ids=("small", "large"))
def test_same_bits_from_run_to_run(variant: Variant, layout: str, dtype: torch.dtype, shape: tuple[int, ...]):
    given = images(0, layout, dtype, shape=shape)

    def run() -> list[Tensor]:
        module = norm(channels=shape[1], act="relu")
        return [*step(module, *given), *state(module)]

    with variant.use():
        first = run()
        assert all(same_bits(run(), first) for _ in range(3))
