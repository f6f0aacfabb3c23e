"""Training steps under torch.compile: torch's results, no more graphs, breaks and compilations than torch."""

import pytest
import torch
import torch._dynamo
from onepass import use_backend
from optim_helpers import (
    NAMES,
    OURS,
    assert_same_training,
    assert_trained_alike,
    each_backend,
    make_torch,
    names,
    params_of,
    randn,
    values,
)
from torch._dynamo.utils import counters


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)


def stepper(model, optimizer):
    """One step of training: forward, backward, step(), zero_grad()."""

    def step(x, y):
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def batches(count, start=0, dtype=torch.float32):
    for t in range(start, start + count):
        yield randn(10, 6, seed=2 * t, dtype=dtype), randn(10, 2, seed=2 * t + 1, dtype=dtype)


def run(step, steps):
    return torch.stack([step(x, y) for x, y in steps])


def compiled(step, backend="aot_eager"):
    return torch.compile(step, backend=backend)


OPTIONS = {
    "float lr": dict,
    "tensor lr": lambda: {"lr": torch.tensor(1e-2)},
    "amsgrad, maximize": lambda: {"amsgrad": True, "maximize": True, "weight_decay": 0.1},
    "tensor betas": lambda: {"betas": (torch.tensor(0.8), torch.tensor(0.99))},
}


@pytest.mark.parametrize("name, options", [("adam", "float lr"), *(("adamw", o) for o in OPTIONS)])
def test_compiled_training_is_torchs(name, options):
    """Against torch in eager mode, where its arithmetic is the for-loop path's."""

    def scenario(make):
        model = network()
        optimizer = make(model.parameters(), **{"lr": 1e-2, **OPTIONS[options]()})
        step = stepper(model, optimizer)
        losses = run(compiled(step) if make is OURS[name] else step, batches(5))
        steps = [optimizer.state[p]["step"].cpu() for p in params_of(optimizer)]
        return [*values(optimizer), losses, *steps]

    assert_same_training(name, scenario)


@each_backend
def test_compiled_training_on_each_backend(backend):
    def scenario(make):
        model = network()
        step = stepper(model, make(model.parameters(), lr=1e-2))
        losses = run(compiled(step) if make is OURS["adam"] else step, batches(3))
        return [*(p.detach() for p in model.parameters()), losses]

    with use_backend(backend):
        assert_same_training("adam", scenario)


def test_compiled_groups_and_missing_gradients():
    def scenario(make):
        model = network()
        unused = torch.nn.Parameter(randn(3))
        first, *rest = model.parameters()
        groups = [
            {"params": [first, unused], "lr": 0.1},
            {"params": rest, "amsgrad": True, "weight_decay": 0.1},
        ]
        optimizer = make(groups, lr=1e-2)
        step = stepper(model, optimizer)
        losses = run(compiled(step) if make is OURS["adamw"] else step, batches(4))
        assert unused not in optimizer.state
        return [*values(optimizer), losses]

    assert_same_training("adamw", scenario)


def test_compiled_bfloat16_training_is_our_eager_training():
    """torch keeps the moments in bfloat16: so against ourselves in eager mode."""
    trained = []
    for wrap in (lambda step: step, compiled):
        model = network(torch.bfloat16)
        optimizer = OURS["adamw"](model.parameters(), lr=1e-2)
        run(wrap(stepper(model, optimizer)), batches(4, dtype=torch.bfloat16))
        assert all(optimizer.state[p]["exp_avg"].dtype == torch.float32 for p in params_of(optimizer))
        trained.append(values(optimizer))
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-6, atol=2**-8)


def test_no_more_graphs_and_breaks_than_torch(name="adamw"):
    """torch.optim's step has graph breaks of its own, and so has backward()."""
    seen = {}
    for make in (OURS[name], make_torch(name)):
        model = network()
        step = stepper(model, make(model.parameters(), lr=1e-2))
        explained = torch._dynamo.explain(step)(*next(batches(1)))
        torch._dynamo.reset()
        counters.clear()
        run(compiled(step), batches(3))
        seen[make] = explained.graph_count, explained.graph_break_count, counters["stats"]["unique_graphs"]
    ours, theirs = seen.values()
    assert all(mine <= torchs for mine, torchs in zip(ours, theirs, strict=True)), (ours, theirs)


@names
def test_the_step_is_one_op_in_the_graph(name):
    """And not the reference's arithmetic: what makes one pass over memory is not taken apart."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = network()
    step = stepper(model, OURS[name](model.parameters(), lr=1e-2))
    run(compiled(step, keep), batches(2))
    targets = [
        str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"
    ]
    assert sum(f"onepass.{name}_" in target for target in targets) == 1


@names
def test_a_tensor_lr_and_the_step_number_do_not_recompile(name):
    model = network()
    lr = torch.tensor(1e-2)
    optimizer = OURS[name](model.parameters(), lr=lr)
    step, data = compiled(stepper(model, optimizer)), list(batches(12))
    run(step, data[:2])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in data[2:]:
            lr.mul_(0.9)
            step(*batch)
    assert optimizer.state[params_of(optimizer)[0]]["step"].item() == 12

    lr = torch.tensor(1e-2)
    model = network()
    theirs = make_torch(name)(model.parameters(), lr=lr)
    step = stepper(model, theirs)
    for t, batch in enumerate(data):
        lr.mul_(0.9 if t > 1 else 1.0)
        step(*batch)
    assert_trained_alike(values(optimizer), values(theirs))


def test_no_more_compilations_than_torch_while_a_float_lr_changes(name="adamw"):
    """As under any scheduler. Each compilation too many is a second, and after some dynamo gives up."""
    seen = []
    for make in (OURS[name], make_torch(name)):
        torch._dynamo.reset()
        counters.clear()
        model = network()
        optimizer = make(model.parameters(), lr=1e-2)
        step = compiled(stepper(model, optimizer))
        for batch in batches(5):
            optimizer.param_groups[0]["lr"] *= 0.9
            step(*batch)
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] <= seen[1]


@pytest.mark.parametrize("tensor_lr", (False, True), ids=("float", "tensor"))
def test_eager_then_compiled_then_eager(tensor_lr, name="adamw"):
    def scenario(make):
        model = network()
        optimizer = make(model.parameters(), lr=torch.tensor(1e-2) if tensor_lr else 1e-2, weight_decay=0.1)
        eager = stepper(model, optimizer)
        between = compiled(eager) if make is OURS[name] else eager
        losses = [run(eager, batches(3)), run(between, batches(3, 3)), run(eager, batches(3, 6))]
        losses += [run(between, batches(2, 9)), run(eager, batches(1, 11))]
        assert optimizer.state[params_of(optimizer)[0]]["step"].item() == 12
        return [*values(optimizer), *losses]

    assert_same_training(name, scenario)


@pytest.mark.parametrize("with_closure", (False, True), ids=("no closure", "closure"))
def test_compiled_step_alone(with_closure):
    """torch.compile(optimizer.step), around an eager forward and backward."""

    def scenario(make):
        model = network()
        optimizer = make(model.parameters(), lr=1e-2)
        step = compiled(optimizer.step) if make is OURS["adam"] else optimizer.step
        losses = []
        for x, y in batches(4):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = ((model(x) - y) ** 2).mean()
                loss.backward()
                return loss

            losses.append((step(closure) if with_closure else (closure(), step())[0]).detach())
        return [*values(optimizer), *losses]

    assert_same_training("adam", scenario)


def test_a_compiled_step_bumps_the_version_of_its_parameters():
    model = network()
    optimizer = OURS["adam"](model.parameters(), lr=1e-2)
    step = compiled(optimizer.step)
    for x, _ in batches(3):
        loss = (model(x) ** 2).sum()
        loss.backward(retain_graph=True)
        step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_not_written_by_a_compiled_step():
    """A functional graph copies what it believes to be changed: gradients are only read."""
    model = network()
    optimizer = OURS["adamw"](model.parameters(), lr=1e-2, maximize=True, weight_decay=0.1)
    step = compiled(optimizer.step)
    for t in range(3):
        for i, p in enumerate(params_of(optimizer)):
            p.grad = randn(*p.shape, seed=10 * t + i)
        kept = [(p.grad, p.grad.clone(), p.grad._version) for p in params_of(optimizer)]
        step()
        for p, (g, before, version) in zip(params_of(optimizer), kept, strict=True):
            assert p.grad is g
            assert torch.equal(g, before)
            assert g._version == version


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_inductor(name):
    def scenario(make):
        model = network()
        optimizer = make(model.parameters(), lr=torch.tensor(1e-2), weight_decay=0.1)
        step = stepper(model, optimizer)
        losses = run(compiled(step, "inductor") if make is OURS[name] else step, batches(6))
        return [*values(optimizer), losses]

    assert_same_training(name, scenario)
