"""fuse: normalization, residual and activation of a model in one pass over memory."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node, Tracer
from torch.nn import functional as F

from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .graphs import calls, hooked, operands, rebuilt, sibling, traced

# Exact classes: a subclass may do anything, and SyncBatchNorm speaks with other processes.
OURS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    **{cls: cls for cls in (BatchNorm1d, BatchNorm2d, BatchNorm3d)},
}
_ADDS = {
    ("call_function", operator.add): ("input", "other"),
    ("call_function", operator.iadd): ("input", "other"),
    ("call_function", torch.add): ("input", "other", "alpha"),
    ("call_method", "add"): ("input", "other", "alpha"),
    ("call_method", "add_"): ("input", "other", "alpha"),
}
_ACTS: dict[tuple[str, Any], str] = {
    **{("call_function", function): "relu" for function in (F.relu, torch.relu, torch.relu_)},
    **{("call_function", function): "leaky_relu" for function in (F.leaky_relu, F.leaky_relu_)},
    ("call_function", F.silu): "silu",
    ("call_method", "relu"): "relu",
    ("call_method", "relu_"): "relu",
}
_ACT_MODULES = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.SiLU: "silu"}
_IN_PLACE = (operator.iadd, "add_")
_NO_TENSORS = (getattr, len, "size", "dim", "ndimension", "numel", "stride", "item", "tolist")
_WRITES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "setitem")
_KNOWN = ("torch", "onepass.", "_operator", "builtins", "math")


def fuse(model: nn.Module, *, tracer: Tracer | None = None) -> GraphModule:
    """The model with batch normalization, the residual sum and the activation behind it as one operation.

    nn.BatchNorm1d, 2d and 3d, and ours without act, become ours: alone, or with the sum or the ReLU,
    LeakyReLU or SiLU that alone takes their result, or with both. In BN(x) + BN(y) the later takes the sum.

    Args:
        model: to be traced by torch.fx, or a GraphModule, whose graph is then used. It is not changed.
        tracer: in place of torch.fx.Tracer; normalizations into which it looks are not found.

    Returns:
        A GraphModule over the very parameters and buffers of the model: train or load one, and the other
        follows; state_dict has the same keys. What replaces tensors rather than writing them, as
        model.to(device) replaces buffers, parts the two: move the model before. Leaf modules, but for
        normalizations, are the model's own, so that train() and eval() of either reach them: call it on the
        one that you run next.

    Left as it is: a normalization (or activation) with hooks; one that is called several times, unless the
    same follows each time; a subclass, SyncBatchNorm too; a sum with alpha, with a number or a parameter, or
    with what is computed after the normalization or may be written between it and the sum.

    A sum is taken to be one of equal shapes, dtypes and memory formats. Where it is not, the fused model
    raises RuntimeError naming the residual; shapes that fx's ShapeProp noted in a GraphModule are respected.

    fx's own limits: what forward decides in Python, by self.training too, is decided as in the model's
    present mode; hooks of modules that are no leaves run while tracing, those of the model itself never. A
    deep copy of a GraphModule has the model's own unsaved buffers and constants in its state_dict.

    Raises:
        RuntimeError: fx cannot trace the model (its error is the cause), or keys of state_dict would change,
            as with a module's extra state: make that module a leaf.
    """
    graph, constants = traced("fuse", model, tracer)
    order = {node: place for place, node in enumerate(graph.nodes)}
    replaced: dict[nn.Module, nn.Module | None] = {}
    for bn, nodes in calls(model, graph).items():
        if type(bn) not in OURS or hooked(bn) or getattr(bn, "act", None) is not None:
            continue
        sites = [_Site(node).grown(model, order) for node in nodes]
        if len({site.kind for site in sites}) == 1:
            replaced[bn] = sites[0].module(bn)
            for site in sites:
                site.contract()
    fused = rebuilt(model, graph, replaced, constants)
    differing = model.state_dict().keys() ^ fused.state_dict().keys()
    if differing:
        keys = sorted(differing)
        raise RuntimeError(
            f"fuse: state_dict would not keep the keys {keys}: make their module a leaf by tracer="
        )
    return fused


@dataclass
class _Site:
    """A call of a normalization, and the nodes behind it that it takes over."""

    node: Node
    add: Node | None = None
    act: str | None = None
    slope: float = 0.01
    taken: list[Node] = field(default_factory=list)

    @property
    def kind(self) -> tuple[Any, ...]:
        given = operands(self.node, "input", "residual")
        return self.act, self.slope, self.add is None, given is None or given[1] is None

    def grown(self, model: nn.Module, order: dict[Node, int]) -> "_Site":
        end = self.node
        given = operands(end, "input", "residual")
        if given is not None and given[1] is None and (add := _sum(end, model, order)):
            self.add = end = add
            self.taken.append(add)
        if given is not None and (act := _activation(end, model)):
            last, self.act, self.slope = act
            self.taken.append(last)
        return self

    def module(self, bn: nn.Module) -> nn.Module:
        if type(bn) is OURS[type(bn)] and not self.taken:
            return bn
        made = sibling(bn, OURS[type(bn)])
        made.act, made.negative_slope = self.act, self.slope
        return made

    def contract(self) -> None:
        if self.add is not None:  # its operands may have been replaced since
            residual = next(n for n in self.add.all_input_nodes if n is not self.node)
            self.node.args, self.node.kwargs = (self.node.all_input_nodes[0], residual), {}
        if self.taken:
            self.taken[-1].replace_all_uses_with(self.node)
        for node in reversed(self.taken):
            node.graph.erase_node(node)


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


# --- sums ---------------------------------------------------------------------------------------------------
def _sum(bn: Node, model: nn.Module, order: dict[Node, int]) -> Node | None:
    """The sum that alone takes the result of bn, where a residual could be given to bn instead."""
    add = _only_user(bn)
    names = None if add is None else _ADDS.get((add.op, add.target))
    given = None if add is None or names is None else operands(add, *names)
    if add is None or given is None or given[2:] not in ([], [None], [1]):
        return None
    first, second = given[:2]
    other = second if first is bn else first
    if not isinstance(other, Node) or order[other] >= order[bn] or not _is_residual(other, bn):
        return None
    lost = first is other and add.target in _IN_PLACE  # what the sum would have written
    if lost and not (len(other.users) == 1 and _is_fresh(other, model)):
        return None
    node = bn.next
    while node is not add:
        if _writes(node, model):
            return None
        node = node.next
    return add


def _is_residual(node: Node, bn: Node) -> bool:
    """False for what is known to be a number or a parameter, or to have another shape."""
    shapes = [getattr(n.meta.get("tensor_meta", n.meta.get("val")), "shape", None) for n in (node, bn)]
    return node.op != "get_attr" and not _is_number(node) and (None in shapes or shapes[0] == shapes[1])


def _is_number(node: Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    arithmetic = getattr(node.target, "__module__", None) == "_operator"
    return node.target in _NO_TENSORS or (arithmetic and all(map(_is_number, node.all_input_nodes)))


def _is_fresh(node: Node, model: nn.Module) -> bool:
    """Is it memory of its own, rather than a view or what was given?"""
    makers = (nn.modules.batchnorm._BatchNorm, nn.modules.conv._ConvNd, nn.Linear)
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), makers)


def _writes(node: Node, model: nn.Module) -> bool:
    """May it write to what it is given? What is neither torch's nor ours may."""
    if node.op == "call_module":
        parts = model.get_submodule(str(node.target)).modules()
        return any(getattr(m, "inplace", False) or not type(m).__module__.startswith(_KNOWN) for m in parts)
    if node.op not in ("call_function", "call_method"):
        return False
    named = isinstance(node.target, str)
    name = str(node.target if named else getattr(node.target, "__name__", "")).partition(".")[0]
    unknown = not named and not str(getattr(node.target, "__module__", None)).startswith(_KNOWN)
    flagged = "out" in node.kwargs or any(value is True for value in (*node.args, *node.kwargs.values()))
    return unknown or flagged or name in _WRITES or (name.endswith("_") and not name.endswith("__"))


# --- activations --------------------------------------------------------------------------------------------
def _activation(node: Node, model: nn.Module) -> tuple[Node, str, float] | None:
    """The activation that alone takes the node's result: its node, name and slope."""
    user = _only_user(node)
    if user is None:
        return None
    if user.op == "call_module":
        module = model.get_submodule(str(user.target))
        act = None if hooked(module) else _ACT_MODULES.get(type(module))
        given, slope = operands(user, "input"), getattr(module, "negative_slope", None)
    else:
        act = _ACTS.get((user.op, user.target))
        names = ("input", "negative_slope", "inplace") if act == "leaky_relu" else ("input", "inplace")
        given = operands(user, *names)
        slope = given[1] if given is not None and act == "leaky_relu" else None
    slope = 0.01 if slope is None else slope
    if act is None or given is None or given[0] is not node or not isinstance(slope, int | float):
        return None
    return user, act, float(slope)
