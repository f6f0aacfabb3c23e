"""What other libraries get wrong, each with its name: none of it is to be found here."""

import copy
import math

import pytest
import torch
from onepass import use_backend
from onepass.testing import layouts
from optim_helpers import assert_trained_alike, each_backend, first_backend, frozen, params_of, randn, values
from phase_helpers import (
    HALVES,
    KINDS,
    CallByCall,
    assert_near,
    assert_trained,
    each_dtype,
    each_kind,
    few_kinds,
    give,
    gradients,
    hand_in,
    parameters,
    three_groups,
)

STEPS = 20
half_dtypes = pytest.mark.parametrize("dtype", HALVES, ids=str)
counting_kinds = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("sgd", "sgd_nesterov", "sgd_dampening", "lion")]
)


def under_a_scaler(optimizer, overflows, unscale=False):
    """Parameters after training with gradients that are scaled, and inf in these steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    for t in range(STEPS):
        optimizer.zero_grad()
        factors = gradients(params_of(optimizer), t)
        if t in overflows:
            factors[0].view(-1)[0] = math.inf
        loss = sum((p * x).sum() for p, x in zip(params_of(optimizer), factors, strict=True))
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return values(optimizer)


# --- overflow and loss scale --------------------------------------------------------------------------------
@each_backend
@pytest.mark.parametrize("dampening", (0.0, 0.5))
@pytest.mark.parametrize("nesterov", (False, True))
@pytest.mark.parametrize("fused", (None, True), ids=("default", "fused"))
def test_momentum_after_an_overflow_in_the_first_step(backend, dampening, nesterov, fused):
    """torch (2.13), SGD(fused=True) under GradScaler: the overflow leaves a momentum buffer of memory that
    nobody has written, and the next step uses it."""
    if nesterov and dampening:
        return  # no such SGD
    options = {"momentum": 0.9, "dampening": dampening, "nesterov": nesterov}
    with use_backend(backend):
        ours = under_a_scaler(KINDS["sgd"].make(parameters(), fused=fused, **options), overflows=(0, 1, 7))
    assert_trained_alike(
        ours, under_a_scaler(KINDS["sgd"].make_torch(parameters(), **options), overflows=(0, 1, 7))
    )


@each_kind
@each_backend
@pytest.mark.parametrize("clip", (None, 1e4))
def test_gradients_are_unscaled_once_after_unscale_(kind, backend, clip):
    """Apex and TransformerEngine, FusedAdam(capturable=True): unscaled by scaler.unscale_(), and once more by
    the step. A scale of 1024 more or less shows with any optimizer that has an eps, a momentum or a norm."""
    options = {} if KINDS[kind].ours.__name__ in ("SGD", "Lion") else {"eps": 0.1}
    with use_backend(backend):
        ours = KINDS[kind].make(parameters(), max_grad_norm=clip, write_grads=True, **options)
        trained = under_a_scaler(ours, (3,), unscale=True)
    theirs = KINDS[kind].make_torch(parameters(), **options)
    assert_trained_alike(trained, under_a_scaler(theirs, (3,), unscale=True))
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0.0)


# --- options that are ignored -------------------------------------------------------------------------------
@each_backend
def test_nesterov_is_not_ignored(backend):
    """bitsandbytes: SGD(nesterov=True) takes the step of plain momentum."""
    trained = {}
    for nesterov in (False, True):
        optimizer = KINDS["sgd"].make(parameters(), momentum=0.9, nesterov=nesterov)
        oracle = KINDS["sgd"].make_torch(parameters(), momentum=0.9, nesterov=nesterov)
        with use_backend(backend):
            for t in range(STEPS):
                for o in (optimizer, oracle):
                    give(o, gradients(params_of(o), t))
                    o.step()
        assert_trained_alike(values(optimizer), values(oracle))
        trained[nesterov] = torch.cat([p.flatten() for p in values(optimizer)])
    assert (trained[True] - trained[False]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ("adamw", "lion", "sgd"))
@each_backend
@half_dtypes
def test_weight_decay_reaches_half_weights(kind, backend, dtype):
    """optimi: Kahan AdamW applies no weight decay in bfloat16, a norm ratio of 1.0000 where 0.905 is right.
    Ten roundings to a spacing of up to 0.8 % (bfloat16), half up and half down over 4096 weights, leave
    0.5 %."""
    optimizer = KINDS[kind].make([torch.nn.Parameter(randn(4096).to(dtype))], lr=1e-2, weight_decay=1.0)
    (p,) = params_of(optimizer)
    before = p.detach().double().norm()
    with use_backend(backend):
        for _ in range(10):
            p.grad = torch.zeros_like(p)
            optimizer.step()
    assert (p.detach().double().norm() / before).item() == pytest.approx(0.99**10, abs=5e-3)


@each_kind
@each_backend
def test_weight_decay_comes_at_one_place_on_every_backend(kind, backend):
    """bitsandbytes: before the update on one backend, behind it on another. At lr 0.5 and weight decay 0.5
    the other order is a quarter of the update off; here each is float64 torch's, one step at a time."""
    optimizer = KINDS[kind].make(parameters(), lr=0.5, weight_decay=0.5)
    oracle = CallByCall(kind, optimizer)
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t)
            for p, q in zip(params_of(optimizer), oracle.params, strict=True):
                p.data.copy_(q.data)
            sizes = [max(1.0, q.detach().abs().max().item()) if q.numel() else 1.0 for q in oracle.params]
            give(optimizer, grads)
            oracle.step(grads)
            optimizer.step()
            for p, q, size in zip(params_of(optimizer), oracle.params, sizes, strict=True):
                assert_near(p, q.detach(), p.dtype, t + 1, t, least=size)


# --- step counters ------------------------------------------------------------------------------------------
@counting_kinds
@each_backend
def test_steps_are_counted_in_groups_of_several_dtypes(kind, backend):
    """DeepSpeed: one counter for all, advanced once for each dtype."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    mixed = [torch.nn.Parameter(p.detach().to(dtypes[i % 4])) for i, p in enumerate(parameters())]
    optimizer = KINDS[kind].make(three_groups(mixed), max_grad_norm=5.0)
    oracle = CallByCall(kind, optimizer, max_grad_norm=5.0)
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t)
            grads = [None if (t + i) % 5 == 0 else g for i, g in enumerate(grads)]
            give(optimizer, grads)
            oracle.follow_halves(params_of(optimizer))
            oracle.step(grads)
            optimizer.step()
            if t % 4 == 3:
                assert_trained(optimizer, oracle, t + 1)
    for p, q in zip(params_of(optimizer), oracle.params, strict=True):
        assert optimizer.state[p]["step"].item() == oracle.optimizer.state[q]["step"].item() == STEPS - 4


@counting_kinds
@each_backend
@half_dtypes
def test_step_counters_do_not_stop_at_256(kind, backend, dtype):
    """torchao: kept in the parameter's bfloat16, a counter stays at 256, where one more is rounded away."""
    optimizer = KINDS[kind].make([torch.nn.Parameter(torch.ones(3, dtype=dtype))], state="bf16")
    (p,) = params_of(optimizer)
    p.grad = torch.ones_like(p)
    with use_backend(backend):
        for _ in range(300):
            optimizer.step()
    assert optimizer.state[p]["step"].item() == 300
    assert optimizer.state_dict()["state"][0]["step"].dtype == torch.float32


# --- memory -------------------------------------------------------------------------------------------------
@few_kinds
@each_backend
@pytest.mark.parametrize("last", (True, False), ids=("last", "first"))
def test_a_tensor_without_elements_writes_nothing(kind, backend, last):
    """Apex, DeepSpeed: in the last slot of the table it writes past its end. Parameters and gradients lie
    in buffers whose other elements have to stay."""
    memory, before = randn(64), randn(64)
    full, empty = memory[8:16], memory[16:16].view(0, 3)
    params = [torch.nn.Parameter(x) for x in ((full, empty) if last else (empty, full))]
    optimizer = KINDS[kind].make(params, lr=0.1, ema_decay=0.5, max_grad_norm=1e3, zero_grads_in_step=True)
    with use_backend(backend):
        for _ in range(3):
            grads = torch.ones(64)
            for p in params:
                p.grad = grads[8:16] if p.numel() else grads[16:16].view(0, 3)
            optimizer.step()
            assert torch.equal(grads, torch.cat([torch.ones(8), torch.zeros(8), torch.ones(48)]))
    assert torch.equal(memory[:8], before[:8]) and torch.equal(memory[16:], before[16:])
    assert (memory[8:16] != before[8:16]).all()


@each_kind
@each_backend
@half_dtypes
def test_every_element_of_half_parameters_moves(kind, backend, dtype):
    """torch (2.13) on the CPU, SGD(fused=True): whole SIMD blocks of bfloat16 and float16 parameters stay as
    they are."""
    shapes = [(n,) for n in (1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 257, 1000, 4099)]
    optimizer = KINDS[kind].make([torch.nn.Parameter(torch.ones(s, dtype=dtype)) for s in shapes], lr=0.1)
    with use_backend(backend):
        for t in range(3):
            before = [p.detach().clone() for p in params_of(optimizer)]
            for p in params_of(optimizer):
                p.grad = torch.full_like(p, 1.0 + t)
            optimizer.step()
            assert all((p != old).all() for p, old in zip(params_of(optimizer), before, strict=True))


@each_kind
@first_backend
@each_dtype
def test_sliced_parameters(kind, backend, dtype):
    """torch (2.13) on the CPU, fused=True on x[:, ::2]: wrong values for SGD, Adam, AdamW and Adagrad."""
    dense = [p.detach() for p in parameters([(7, 9), (33, 64), (2, 3, 30)], dtype)]
    sliced = layouts.every_second(dense)
    optimizer = KINDS[kind].make([torch.nn.Parameter(x) for x in sliced])
    assert not any(p.is_contiguous() for p in params_of(optimizer))
    oracle = CallByCall(kind, optimizer)
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t)
            give(optimizer, grads)
            oracle.follow_halves(params_of(optimizer))
            oracle.step(grads)
            optimizer.step()
            if t % 4 == 3:
                assert_trained(optimizer, oracle, t + 1)
    for x in sliced:
        assert (x.detach().as_strided((*x.shape[:-1], x.shape[-1] - 1), x.stride(), 1) == layouts.GAP).all()


@each_kind
@first_backend
@pytest.mark.parametrize("layout", ("transposed", "every_second", "same_rows", "one_value"))
def test_gradients_that_lie_otherwise_move_the_right_elements(kind, backend, layout):
    """torch (2.13) on the CPU, fused=True: a gradient's strides are ignored, and in silence."""
    optimizer = KINDS[kind].make(parameters([(7, 9), (33, 64), (2, 3, 30)]))
    oracle = CallByCall(kind, optimizer)
    with use_backend(backend):
        for t in range(STEPS):
            grads = getattr(layouts, layout)(gradients(params_of(optimizer), t))
            for p, g in zip(params_of(optimizer), grads, strict=True):
                p.grad = g
            oracle.step(grads)
            optimizer.step()
    assert_trained(optimizer, oracle, STEPS)


@each_kind
@each_backend
def test_a_stale_backward_raises(kind, backend):
    """torch (2.13) on the CPU, fused=True: the version counter is not bumped, and a backward through
    parameters of before the step goes unnoticed."""
    optimizer = KINDS[kind].make([torch.nn.Parameter(randn(8))])
    (p,) = params_of(optimizer)
    with use_backend(backend):
        for _ in range(3):
            loss = (p * p).sum()
            loss.backward(retain_graph=True)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


# --- checkpoints --------------------------------------------------------------------------------------------
@few_kinds
@each_backend
@half_dtypes
def test_float32_states_are_not_cast_when_they_are_loaded(kind, backend, dtype):
    """torch: load_state_dict casts moments to the parameter's dtype, here to 8 or 11 bits."""
    source, loaded = (KINDS[kind].make(parameters(dtype=dtype), ema_decay=0.9) for _ in range(2))
    with use_backend(backend):
        for t in range(3):
            give(source, gradients(params_of(source), t))
            source.step()
    loaded.load_state_dict(copy.deepcopy(source.state_dict()))
    for p, q in zip(params_of(loaded), params_of(source), strict=True):
        for name in (*KINDS[kind].states, "ema"):
            state = loaded.state[p][name]
            assert state.dtype == torch.float32
            assert frozen([state]) == frozen([source.state[q][name]])
            assert state.numel() < 2 or not torch.equal(state, state.to(dtype).float())


@each_backend
def test_found_inf_of_an_earlier_step_is_forgotten(backend):
    """torch's scaler takes its attributes away again: the next step by hand is neither scaled nor skipped."""
    optimizer = KINDS["sgd"].make([torch.nn.Parameter(torch.ones(3))], lr=1.0)
    (p,) = params_of(optimizer)
    with use_backend(backend):
        p.grad = torch.ones(3)
        hand_in(optimizer, 2.0, found_inf=1.0)
        optimizer.step()
        assert optimizer.last_skipped
        hand_in(optimizer, None)
        optimizer.step()
    assert torch.equal(p.detach(), torch.zeros(3)) and not optimizer.last_skipped
