"""The loss scale's rule, by every backend of this machine, against torch's own kernel."""

import pytest
import torch
from onepass import use_backend
from onepass.testing import variants
from optim_helpers import each_backend

FACTORS = ((2.0, 0.5), (1.1, 0.3), (3.0, 0.7), (1.0001, 0.9999), (1.0, 1.0))


def update(backend, scale, tracker, found, factors, interval):
    s, t = torch.tensor(scale), torch.tensor(tracker, dtype=torch.int32)
    with use_backend(backend):
        torch.ops.onepass.update_scale_(
            s, t, torch.zeros(2, dtype=torch.int64), [torch.tensor(found)], *factors, interval, 0, 0.0,
            float("inf"),
        )  # fmt: skip
    return s.item(), t.item()


@each_backend
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("interval", (0, 1, 3))
def test_every_bit_is_torchs(backend, factors, interval):
    """Scales that are no powers of two, at, before and behind the interval."""
    scales = (torch.rand(60, generator=torch.Generator().manual_seed(0)) * 40 - 10).exp2().tolist()
    for i, scale in enumerate(scales):
        for found in (0.0, 1.0):
            s, t = torch.tensor(scale), torch.tensor(i % 4, dtype=torch.int32)
            torch._amp_update_scale_(s, t, torch.tensor(found), *factors, interval)
            got = update(backend, scale, i % 4, found, factors, interval)
            assert got == (s.item(), t.item()), (scale, found)


def test_a_factor_that_is_no_number_is_refused():
    for variant in variants("cpu"):
        for factors in ((float("nan"), 0.5), (2.0, float("nan"))):
            with variant.use(), pytest.raises(RuntimeError, match="factor is nan, expected a number"):
                update(variant.backend, 4.0, 0, 0.0, factors, 3)
