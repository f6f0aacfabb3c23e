"""Models as graphs of torch.fx: what fuse and fold_bn share."""

import copy
from collections.abc import Mapping
from typing import Any

import torch.fx  # torch has loaded it already
from torch import nn
from torch.fx import Graph, GraphModule, Node

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


class Tracer(torch.fx.Tracer):
    """torch.fx's, which would look into our normalizations as into a user's modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        norm = isinstance(m, nn.modules.batchnorm._NormBase)
        return norm or super().is_leaf_module(m, module_qualified_name)


def traced(op: str, model: nn.Module, tracer: torch.fx.Tracer | None) -> tuple[Graph, dict[str, Any]]:
    """A graph of the model to be changed at will, and the constants which it finds by name in no module.

    fx leaves such constants on the model, and forward may leave proxies on any module: all is put back here.
    """
    if isinstance(model, GraphModule) and tracer is None:
        return copy.deepcopy(model.graph), {}
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        graph = (tracer or Tracer()).trace(model)
        constants = {name: value for name, value in vars(model).items() if name not in before[0][1]}
    except Exception as error:
        raise RuntimeError(
            f"{op}: torch.fx cannot trace {type(model).__name__}: {error}. Pass tracer=, a torch.fx.Tracer "
            "to which the modules that it stumbles over are leaves, or a GraphModule of your own."
        ) from error
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
    return graph, constants


def calls(model: nn.Module, graph: Graph) -> dict[nn.Module, list[Node]]:
    """Where each module is called. One module may have several names."""
    found: dict[nn.Module, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            found.setdefault(model.get_submodule(node.target), []).append(node)
    return found


def operands(node: Node, *names: str) -> list[Any] | None:
    """Arguments of a call by their names, None for one that is not there; None for a call with others."""
    if len(node.args) > len(names) or not set(node.kwargs) <= set(names):
        return None
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return [given.get(name) for name in names]


def hooked(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS)


def sibling(module: nn.Module, cls: type[nn.Module] | None = None) -> Any:
    """A module of class cls with the tensors and settings of another, which it can change for itself."""
    cls = cls or type(module)
    made = cls.__new__(cls)
    for name, value in module.__getstate__().items():
        vars(made)[name] = copy.copy(value) if isinstance(value, dict | set) else value
    return made


# --- the way back to a module -----------------------------------------------------------------------------
def rebuilt(
    model: nn.Module, graph: Graph, replaced: Mapping[nn.Module, nn.Module | None], constants: dict[str, Any]
) -> GraphModule:
    """The graph over the model's own modules, but for those that are replaced, or dropped (None).

    Unlike GraphModule by itself it keeps what the graph does not use, and what is a buffer and what is not,
    so that the keys of state_dict stay.
    """
    kept: dict[nn.Module, nn.Module | None] = {module: module for module in calls(model, graph)}
    root = _container(model, {**kept, **replaced})
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, name = node.target.rpartition(".")
            holder = root.get_submodule(path)
            if not hasattr(holder, name):
                given = node.target in constants
                vars(holder)[name] = constants[name] if given else getattr(model.get_submodule(path), name)
    made = GraphModule(root, graph, type(model).__name__)
    vars(made).update(vars(root))  # it registers every tensor as a buffer
    return made


def _container(module: nn.Module, known: dict[nn.Module, nn.Module | None]) -> nn.Module:
    """In a module's place: its tensors and parts, without its forward, which is for the replaced ones."""
    made = nn.Module()
    made.training = module.training
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        getattr(made, name).update(getattr(module, name))
    for name, child in module._modules.items():
        part = child if child is None else _part(child, known)
        if part is not None or child is None:
            made._modules[name] = part
    return made


def _part(module: nn.Module, known: dict[nn.Module, nn.Module | None]) -> nn.Module | None:
    if module not in known:
        changes = any(known.get(part, part) is not part for part in module.modules())
        known[module] = _container(module, known) if changes else module
    return known[module]
