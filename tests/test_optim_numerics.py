"""Adam and AdamW against torch's for-loop path in float32 and against torch in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass import backends, use_backend
from onepass.testing.threads import threads
from optim_helpers import (
    MOMENTS,
    OURS,
    copy_of,
    each_backend,
    error,
    leaves,
    make_torch,
    names,
    needs_cpp,
    params_of,
    randn,
    span,
    take_over,
)
from torch import Tensor

ONE_STEP = 1e-6  # of one float32 step, relative to the parameter before or after it, whichever is larger
BETAS = ((0.0, 0.999), (0.9, 0.999), (0.5, 0.9), (0.95, 0.999))


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on a busy machine mostly wait for each other. More have their own test below."""
    with threads(1):
        yield


def pair(name, tensors, split=None, **options):
    """Our optimizer and torch's. split: [(indices, options of that group)], one group of all if None."""
    split = split or [(range(len(tensors)), {})]
    made = []
    for make in (OURS[name], make_torch(name)):
        params = leaves(tensors)
        made.append(make([{"params": [params[i] for i in on], **extra} for on, extra in split], **options))
    return made


def set_grads(optimizer, grads):
    for p, g in zip(params_of(optimizer), grads, strict=True):
        p.grad = copy_of(g)


def scaled_grads(tensors, t, decades=(-3, 1)):
    """Random gradients whose scale differs from element to element, but not from step to step."""
    grads = []
    for i, x in enumerate(tensors):
        powers = torch.rand(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        scale = 10 ** (decades[0] + (decades[1] - decades[0]) * powers)
        grads.append((randn(*x.shape, seed=7919 * t + i).double() * scale).to(x.dtype))
    return grads


def sizes_added(group, p, g):
    """What a step's gradient adds to each moment, in absolute value. Moments are compared relative to the
    largest of: the moment now, the moment before, and this.

    torch's lerp and our sum round in another order, so each may be off by a unit or two in the last place
    (1.2e-7) of its largest term; where terms cancel, that is far above the last place of their sum.
    """
    g = g.abs() if group["decoupled_weight_decay"] else g.abs() + group["weight_decay"] * p.abs()
    beta1, beta2 = group["betas"]
    square = (1 - beta2) * g * g
    return dict(zip(MOMENTS, ((1 - beta1) * g, square, square), strict=True))


def snapshot(optimizer):
    """Each parameter with its group and what it and its moments are now."""
    return [
        (p, group, p.detach().clone(), {k: v.clone() for k, v in optimizer.state.get(p, {}).items()})
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def assert_one_step_equal(ours, theirs, grads, tolerance=ONE_STEP, floor=0.0, where=""):
    """One step of both from torch's state, with the same gradients. floor: a size below which a parameter
    counts as this large.
    """
    set_grads(ours, grads)
    set_grads(theirs, grads)
    if theirs.state:
        take_over(ours, theirs)
    old = snapshot(theirs)
    ours.step()
    theirs.step()
    for i, (p, (q, group, p0, s0)) in enumerate(zip(params_of(ours), old, strict=True)):
        assert error(q, p, p0, torch.full_like(q, floor)) <= tolerance, f"parameter {i} {where}"
        mine, state = ours.state[p], theirs.state[q]
        assert list(mine) == list(state)
        assert mine["step"].item() == state["step"].item()
        for key, added in sizes_added(group, p0, q.grad).items():
            if key in state:
                before = s0.get(key, torch.zeros_like(q))
                assert error(state[key], mine[key], before, added) <= tolerance, f"{key} {i} {where}"


# --- one step, float32 --------------------------------------------------------------------------------------
def weights(*shape, seed):
    """Normal, but no smaller than the way that 100 steps of 1e-3 can go.

    A parameter that comes close to zero has no digits left to be compared by: where beta1 * exp_avg and
    the gradient cancel, the last place of either is more than 1e-6 of it.
    """
    x = randn(*shape, seed=seed)
    return x + 0.2 * x.sign()


@names
@pytest.mark.parametrize("weight_decay", (0.0, 0.1))
@pytest.mark.parametrize("maximize", (False, True), ids=("min", "max"))
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
def test_one_step_is_torchs_at_every_step_number(name, amsgrad, maximize, weight_decay):
    rows = list(itertools.product(BETAS, (1e-8, 1e-3)))
    tensors = [weights(509, seed=i) for i in range(len(rows))]
    split = [([i], {"betas": betas, "eps": eps}) for i, (betas, eps) in enumerate(rows)]
    options = {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": weight_decay}
    ours, theirs = pair(name, tensors, split, lr=1e-3, **options)
    for t in range(1, 101):
        assert_one_step_equal(ours, theirs, scaled_grads(tensors, t), where=f"of {rows} at t = {t}")


@names
@needs_cpp
@pytest.mark.parametrize("isa", backends.isas())
def test_one_step_is_torchs_on_every_instruction_set(name, isa):
    tensors = [weights(1021, seed=1), weights(40, 30, seed=2)[:, ::2], weights(12, 9, seed=3).t()]
    ours, theirs = pair(name, tensors, lr=1e-3, weight_decay=0.1)
    with backends.use_isa(isa):
        for t in range(1, 31):
            assert_one_step_equal(ours, theirs, scaled_grads(tensors, t), where=f"at t = {t}")


@names
@each_backend
def test_one_step_late_in_training(name, backend):
    """Bias corrections that are 1, and a step counter near the last integers of float32."""
    tensors = [weights(1021, seed=1)]
    ours, theirs = pair(name, tensors, lr=1e-3)
    with use_backend(backend):
        assert_one_step_equal(ours, theirs, scaled_grads(tensors, 1))
        for t in (300, 70_000, 2**24 - 2):
            theirs.state[params_of(theirs)[0]]["step"].fill_(t)
            assert_one_step_equal(ours, theirs, scaled_grads(tensors, t), where=f"at t = {t}")


# --- many steps against float64 -----------------------------------------------------------------------------
def displacement_error(params, exact, start):
    """||(p - start) - (exact - start)|| / ||exact - start||, over all parameters together."""
    off = sum(((p.double() - q) ** 2).sum() for p, q in zip(params, exact, strict=True))
    way = sum(((q - s.double()) ** 2).sum() for q, s in zip(exact, start, strict=True))
    return (off / way).sqrt().item()


@names
@pytest.mark.parametrize("lr, weight_decay", ((1e-4, 0.1), (1e-3, 1e-2)))
def test_displacement_after_2000_steps_is_no_further_from_float64_than_torchs(name, lr, weight_decay):
    """Weights and gradients as a network has them: a scale per layer, gradients whose mean turns slowly."""
    sizes, scales = (12288, 6144, 1536, 96, 64), (0.10, 0.12, 0.25, 0.02, 1.0)
    start = randn(sum(sizes), seed=1) * torch.tensor(scales).repeat_interleave(torch.tensor(sizes))
    drift = randn(sum(sizes), seed=2)
    options = {"lr": lr, "weight_decay": weight_decay}
    ours, theirs = OURS[name](leaves([start]), **options), make_torch(name)(leaves([start]), **options)
    exact = make_torch(name)(leaves([start.double()]), **options)
    generator = torch.Generator().manual_seed(7)
    for t in range(2000):
        g = 1e-3 * (drift * (1 - t / 1000) + torch.randn(drift.shape, generator=generator))
        for optimizer in (ours, theirs, exact):
            (p,) = params_of(optimizer)
            p.grad = g.to(p.dtype)
            optimizer.step()
    mine, torchs = (displacement_error(params_of(o), params_of(exact), [start]) for o in (ours, theirs))
    assert mine <= torchs
    assert mine < 5e-5


# --- other dtypes -------------------------------------------------------------------------------------------
@names
@each_backend
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
def test_float64_parameters_are_torchs(name, backend, amsgrad):
    tensors = [randn(509, seed=i, dtype=torch.float64) for i in range(len(BETAS) - 1)]
    tensors.append(randn(7, 9, seed=9, dtype=torch.float64).t())
    rows = zip(BETAS, (1e-8, 1e-3, 1e-8, 0.1), (0.0, 0.1, 0.5, 0.01), (False, True, True, False), strict=True)
    keys = ("betas", "eps", "weight_decay", "maximize")
    split = [([i], dict(zip(keys, row, strict=True))) for i, row in enumerate(rows)]
    ours, theirs = pair(name, tensors, split, lr=1e-3, amsgrad=amsgrad)
    with use_backend(backend):
        for t in range(1, 61):
            grads = scaled_grads(tensors, t)
            assert_one_step_equal(ours, theirs, grads, tolerance=1e-12, floor=1e-3, where=f"at t = {t}")
    assert all(ours.state[p]["exp_avg"].dtype == torch.float64 for p in params_of(ours))


def ulps_apart(a, b):
    """How many steps between neighbouring numbers of their 16-bit dtype lie between a and b."""
    keys = []
    for t in (a, b):
        bits = t.detach().contiguous().view(torch.int16).int()
        keys.append(torch.where(bits < 0, -(bits & 0x7FFF), bits))
    return (keys[0] - keys[1]).abs()


@names
@each_backend
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_parameters_are_float64_rounded_once(name, backend, amsgrad, dtype):
    """The moments are float32 and within 1e-6; the parameter is the float64 result rounded to its dtype, and
    may be its neighbour only where the float64 result lies close to the middle between two."""
    tensors = [randn(2003, seed=1, dtype=dtype), randn(30, 21, seed=2, dtype=dtype)[:, ::2]]
    options = {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": amsgrad}
    ours = OURS[name](leaves(tensors), **options)
    exact = make_torch(name)(leaves([x.double() for x in tensors]), **options)
    with use_backend(backend):
        for t in range(1, 21):
            if t > 1:
                take_over(exact, ours)
            grads = scaled_grads(tensors, t)
            set_grads(ours, grads)
            set_grads(exact, [g.double() for g in grads])
            old = snapshot(exact)
            ours.step()
            exact.step()
            for p, (q, group, p0, s0) in zip(params_of(ours), old, strict=True):
                apart = ulps_apart(p, q.to(dtype))
                assert apart.max() <= 1
                assert (apart > 0).float().mean() < 1e-2
                for key, added in list(sizes_added(group, p0, q.grad).items())[: 2 + amsgrad]:
                    assert ours.state[p][key].dtype == torch.float32
                    before = s0.get(key, torch.zeros_like(q))
                    assert error(exact.state[q][key], ours.state[p][key], before, added) <= ONE_STEP


@names
@each_backend
def test_weight_decay_reaches_bfloat16_weights(name, backend):
    """optimi's Kahan AdamW applies no weight decay in bfloat16: a norm ratio of 1 where 0.905 is right."""
    p = torch.nn.Parameter(randn(4096, dtype=torch.bfloat16))
    before = p.detach().float().norm()
    optimizer = OURS[name]([p], lr=0.1, weight_decay=0.1)
    with use_backend(backend):
        for _ in range(10):
            p.grad = torch.zeros_like(p)
            optimizer.step()
    if name == "adamw":
        assert (p.detach().float().norm() / before).item() == pytest.approx(0.99**10, abs=5e-3)
    else:  # the L2 term is the gradient: each weight moves by lr a step towards zero
        large = randn(4096, dtype=torch.bfloat16).abs() > 1.2
        moved = randn(4096, dtype=torch.bfloat16).abs().float() - p.detach().abs().float()
        torch.testing.assert_close(moved[large], torch.ones_like(moved[large]), rtol=0, atol=0.1)


@each_backend
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_step_counter_does_not_stop_at_256(backend, dtype):
    """torchao's step counter, kept in the parameters' bfloat16, stays at 256."""
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = OURS["adam"]([p])
    with use_backend(backend):
        for _ in range(300):
            p.grad = torch.ones_like(p)
            optimizer.step()
    assert optimizer.state[p]["step"].item() == 300
    assert optimizer.state[p]["step"].dtype == torch.float32


# --- any shape, stride, value, hyperparameter ---------------------------------------------------------------
LAYOUTS = ("contiguous", "transposed", "sliced", "channels_last", "offset", "flipped_storage")


def laid_out(x, layout):
    """The values of x in another layout; only where x has dimensions enough."""
    if layout == "transposed" and x.dim() >= 2:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced" and x.dim() >= 1:
        return torch.stack((x, torch.full_like(x, 77.0)), dim=-1).flatten(-2)[..., ::2]
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "offset":
        return torch.cat((torch.full((3,), 77.0, dtype=x.dtype), x.reshape(-1)))[3:].view(x.shape)
    if layout == "flipped_storage" and x.dim() >= 2:
        order = list(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    return x.clone()


def grad_for(p, layout, t, scale, seed):
    if layout == "expanded":
        return (scale * randn(*((1,) * p.dim()), seed=seed + t)).expand(p.shape)
    return laid_out(scale * randn(*p.shape, seed=seed + t), layout)


shapes = st.one_of(
    st.lists(st.integers(0, 6), max_size=5),
    st.tuples(st.integers(250, 520)),
    st.tuples(st.integers(1, 5), st.integers(60, 300)),
    st.tuples(*[st.integers(1, 8)] * 4),
).map(tuple)
# beta1^2 <= beta2: else exp_avg may be any number of times the root of exp_avg_sq, and its rounding with it
some_betas = ((0.0, 0.0), (0.0, 0.999), (1e-3, 0.5), (0.5, 0.9), (0.9, 0.99), (0.95, 0.99999), (0.99, 0.999))
group_options = st.fixed_dictionaries(
    {
        "lr": st.sampled_from((0.0, 1e-6, 1e-3, 0.05)),
        "betas": st.sampled_from(some_betas),
        "eps": st.sampled_from((1e-12, 1e-8, 1e-3, 1.0)),
        "weight_decay": st.sampled_from((0.0, 1e-2, 0.5)),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
    }
)
tensor_specs = st.tuples(
    shapes,
    st.sampled_from(LAYOUTS),
    st.sampled_from((*LAYOUTS, "expanded")),
    st.sampled_from((1e-4, 1.0, 1e3)),  # of the gradient
    st.integers(0, 2),  # group
)


@names
@settings(max_examples=60, deadline=None)
@given(
    specs=st.lists(tensor_specs, min_size=1, max_size=5),
    options=st.lists(group_options, min_size=3, max_size=3),
    seed=st.integers(0, 10_000),
)
def test_any_lists_of_tensors_are_torchs(name, specs, options, seed):
    tensors = [laid_out(randn(*shape, seed=seed + i), layout) for i, (shape, layout, *_) in enumerate(specs)]
    groups = sorted({spec[-1] for spec in specs})
    split = [([i for i, spec in enumerate(specs) if spec[-1] == g], options[g]) for g in groups]
    ordered = [i for on, _ in split for i in on]
    ours, theirs = pair(name, tensors, split)
    for p, i in zip(params_of(ours), ordered, strict=True):
        assert p.stride() == tensors[i].stride()
    largest = max(option["lr"] for option in options)
    for t in range(1, 4):
        grads = [grad_for(tensors[i], specs[i][2], t, specs[i][3], seed) for i in ordered]
        assert_one_step_equal(ours, theirs, grads, floor=largest, where=f"of {ordered} at t = {t}")
    for p, i in zip(params_of(ours), ordered, strict=True):
        if tensors[i].numel() > 0:
            gaps = torch.ones_like(span(tensors[i]), dtype=torch.bool)
            gaps.as_strided(p.shape, p.stride()).fill_(False)
            assert torch.equal(span(p)[gaps], span(tensors[i])[gaps]), (
                f"the gaps of parameter {i} were written"
            )


@names
@pytest.mark.parametrize("grad_layout", ("contiguous", "transposed", "sliced", "expanded"))
@pytest.mark.parametrize("layout", ("contiguous", "transposed", "sliced"))
def test_layouts_beyond_one_tile(name, layout, grad_layout):
    """torch's fused CPU kernels ignore the strides of gradients and get sliced parameters wrong."""
    tensors = [laid_out(randn(130, 140, seed=1), layout), randn(5, seed=2)]
    ours, theirs = pair(name, tensors, lr=1e-3, weight_decay=0.1)
    for t in range(1, 4):
        grads = [grad_for(x, grad_layout, t, 1.0, 10 * i) for i, x in enumerate(tensors)]
        assert_one_step_equal(ours, theirs, grads, floor=1e-3, where=f"at t = {t}")


@names
def test_states_laid_out_unlike_their_parameter(name):
    tensors = [randn(20, 30, seed=1), randn(4, 4, 4, 4, seed=2)]
    ours, theirs = pair(name, tensors, lr=1e-3, amsgrad=True)
    assert_one_step_equal(ours, theirs, scaled_grads(tensors, 1))
    for p, layout in zip(params_of(ours), ("transposed", "channels_last"), strict=True):
        for key in ("exp_avg", "max_exp_avg_sq"):
            ours.state[p][key] = laid_out(ours.state[p][key], layout)
    for t in range(2, 5):
        assert_one_step_equal(ours, theirs, scaled_grads(tensors, t), floor=1e-3, where=f"at t = {t}")


@each_backend
@pytest.mark.parametrize("last", (True, False), ids=("last", "first"))
def test_zero_numel_tensors_write_nothing(backend, last):
    """Apex and DeepSpeed: a tensor without elements in the last slot of the table writes out of bounds."""
    memory = randn(64)
    before = memory.clone()
    full, empty = memory[8:16], memory[16:16].view(0, 3)
    params = [torch.nn.Parameter(x) for x in ((full, empty) if last else (empty, full))]
    optimizer = OURS["adamw"](params, lr=0.1)
    with use_backend(backend):
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    assert torch.equal(memory[:8], before[:8])
    assert torch.equal(memory[16:], before[16:])
    assert (memory[8:16] < before[8:16]).all()
    assert [optimizer.state[p]["step"].item() for p in params] == [3, 3]


@each_backend
@pytest.mark.parametrize(
    "empty",
    (torch.empty(0), torch.empty(0, 3).t(), torch.empty(0, 0, 0, 2).to(memory_format=torch.channels_last)),
    ids=("flat", "transposed", "channels_last"),
)
def test_only_empty_tensors(backend, empty):
    """Some of their strides are 0, with nothing behind them to be written twice."""
    p = torch.nn.Parameter(empty)
    optimizer = OURS["adam"]([p])
    p.grad = torch.empty_like(empty)
    with use_backend(backend):
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 1


# --- inf, NaN, overflow -------------------------------------------------------------------------------------
POISON = {
    "inf": float("inf"),
    "-inf": float("-inf"),
    "nan": float("nan"),
    "square overflows": 1e25,
    "near the largest": -3e38,
    "square underflows": 1e-30,
    "denormal": 1e-42,
}


@names
@each_backend
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
@pytest.mark.parametrize("poison", POISON)
def test_non_finite_values_stand_where_torch_has_them(name, backend, amsgrad, poison):
    """Over steps of which the first, or the third, has the value in some gradients.

    The places of NaN, inf and -inf are the same in parameters and in exp_avg_sq; in exp_avg the places that
    are not finite are. There torch's lerp makes NaN of an average that was inf before (inf + w * (g - inf)),
    ours stays inf; the parameter is NaN by then either way.
    """
    tensors = [randn(301, seed=1), randn(14, 20, seed=2)[:, ::2]]
    for bad_step in (1, 3):
        ours, theirs = pair(name, tensors, lr=1e-2, weight_decay=0.1, amsgrad=amsgrad)
        for t in range(1, 7):
            grads = [randn(*x.shape, seed=t) for x in tensors]
            if t == bad_step:
                for g in grads:
                    g.view(-1)[::7] = POISON[poison]
            for optimizer in (ours, theirs):
                set_grads(optimizer, grads)
            with use_backend(backend):
                ours.step()
            theirs.step()
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                assert_same_places(p, q)
                if (
                    backend != "reference"
                ):  # its arithmetic has the range of float64: 1e25 squared is a number
                    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, equal_nan=True)
                mine, state = ours.state[p], theirs.state[q]
                assert torch.equal(mine["exp_avg"].isfinite(), state["exp_avg"].isfinite())
                for key in MOMENTS[1 : 2 + amsgrad]:
                    assert_same_places(mine[key], state[key])
        if poison in ("inf", "-inf", "nan"):
            assert params_of(theirs)[0].isnan().sum() == 43  # the test is about something


def assert_same_places(a: Tensor, b: Tensor) -> None:
    for of in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(of(a), of(b)), f"{of.__name__}: {of(a).sum()} places, torch has {of(b).sum()}"


# --- threads ------------------------------------------------------------------------------------------------
def bits_after_steps(name, dtype):
    tensors = [
        randn(100_003, seed=1, dtype=dtype),
        randn(1, seed=2, dtype=dtype),
        randn(0, 4, seed=3, dtype=dtype),
        randn(190, 200, seed=4, dtype=dtype)[:, ::2],
        randn(77, seed=5, dtype=dtype),
        randn(150, 170, seed=6, dtype=dtype).t(),
    ]
    optimizer = OURS[name](leaves(tensors), lr=1e-2, weight_decay=0.1, amsgrad=True)
    for t in range(3):
        set_grads(optimizer, [randn(*x.shape, seed=100 * t + i, dtype=dtype) for i, x in enumerate(tensors)])
        optimizer.step()
    params = params_of(optimizer)
    return [p.detach() for p in params] + [optimizer.state[p][key] for p in params for key in MOMENTS]


@names
@needs_cpp
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(name, dtype):
    one = bits_after_steps(name, dtype)
    for count in (1, 2, 3, 8):
        with threads(count):
            many = bits_after_steps(name, dtype)
        assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True)), f"{count} threads"


# --- loss scaling, at the op --------------------------------------------------------------------------------
def op_args(seed=0):
    tensors = [randn(50, seed=seed + i) for i in range(8)]
    p, g, m, v = tensors[:2], tensors[2:4], tensors[4:6], [x.abs() for x in tensors[6:]]
    hyper = torch.tensor([[1e-2, 0.1, 0, 0, 0, float("inf"), 0.9, 0.999, 1e-8]], dtype=torch.float64)
    return p, g, m, v, [], [], [torch.tensor(3.0), torch.tensor(4.0)], hyper, [0, 0]


@each_backend
@pytest.mark.parametrize("op", ("adam_", "adamw_"))
def test_op_divides_the_gradient_by_its_scale(op, backend):
    run, plain, scaled = getattr(torch.ops.onepass, op), op_args(), op_args()
    with use_backend(backend):
        run(*plain)
        for g in scaled[1]:
            g.mul_(1024.0)
        run(*scaled, grad_scale=torch.tensor(1024.0), found_inf=torch.tensor(0.0))
    for i in (0, 2, 3, 6):
        assert all(torch.equal(a, b) for a, b in zip(plain[i], scaled[i], strict=True))


@each_backend
@pytest.mark.parametrize("op", ("adam_", "adamw_"))
def test_op_changes_nothing_where_inf_was_found(op, backend):
    args, before = op_args(), op_args()
    args[1][0].fill_(float("inf"))
    before[1][0].fill_(float("inf"))
    with use_backend(backend):
        getattr(torch.ops.onepass, op)(*args, found_inf=torch.tensor(1.0))
    for i in (0, 1, 2, 3, 6):
        assert all(torch.equal(a, b) for a, b in zip(args[i], before[i], strict=True))
