"""fold_bn: batch normalization in evaluation as part of the layer before it."""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer

from .fuse import OURS
from .graphs import calls, hooked, operands, rebuilt, sibling, traced

# Exact classes: a subclass may do anything with its weight.
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
# Dimensions of the layer's input where BatchNorm1d could also stand behind others.
_DIMS = {nn.Linear: 2, nn.Conv1d: 3, nn.ConvTranspose1d: 3}


def fold_bn(model: nn.Module, *, tracer: Tracer | None = None) -> GraphModule:
    """A copy for inference in which a layer and the batch normalization directly behind it are one layer.

    Layers are Linear, Conv1d to 3d and ConvTranspose1d to 3d; normalizations BatchNorm1d to 3d, torch's and
    ours. Of ours the residual stays as a sum and the activation as a module under the normalization's name.
    Folded weights and biases are computed in float64 and then rounded to the layer's dtype.

    Args:
        model: in evaluation mode, to be traced by torch.fx, or a GraphModule. It is not changed and shares
            nothing with the copy.
        tracer: in place of torch.fx.Tracer; layers and normalizations into which it looks are not folded.

    Left as it is: a pair of which one is called elsewhere too, has hooks, or whose parameters the model uses
    by themselves; a normalization without running statistics; a subclass, SyncBatchNorm too.

    Behind Linear the folded layer takes [N, C] only, Conv1d [N, C, L]: with other dimensions BatchNorm1d
    would have normalized along another one. They raise RuntimeError when the copy is called.

    Raises:
        ValueError: a module in training mode, the first of which is named.
        RuntimeError: fx cannot trace the model; its error is the cause.
    """
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(f"fold_bn: {name or 'the model'} is in training mode, expected model.eval()")
    model = copy.deepcopy(model)
    graph, constants = traced("fold_bn", model, tracer)
    sites = calls(model, graph)
    apart = {model.get_submodule(n.target.rpartition(".")[0]) for n in graph.nodes if n.op == "get_attr"}
    free = {m for m, nodes in sites.items() if len(nodes) == 1 and m not in apart and not hooked(m)}
    replaced: dict[nn.Module, nn.Module | None] = {}
    for bn in sites:
        if bn not in free or type(bn) not in OURS or bn.running_mean is None or bn.running_var is None:
            continue
        node = sites[bn][0]
        layer_node = _before(node)
        layer = None if layer_node is None else model.get_submodule(str(layer_node.target))
        if layer_node is not None and layer in free and _fits(replaced.get(layer, layer), bn):
            if layer not in replaced:
                _expect_batch(graph, layer_node, _DIMS.get(type(layer)))
            replaced[layer] = _merged(replaced.get(layer, layer), bn)
            replaced[bn] = _activation(bn)
            _take_out(graph, node, layer_node, keep=replaced[bn] is not None)
    return rebuilt(model, graph, replaced, constants)


def _before(bn: Node) -> Node | None:
    """The call whose result goes into bn, as its input, and nowhere else."""
    given = operands(bn, "input", "residual")
    if given is None or not isinstance(given[0], Node) or given[0] is given[1]:
        return None
    return given[0] if given[0].op == "call_module" and len(given[0].users) == 1 else None


def _fits(layer: Any, bn: Any) -> bool:
    if type(layer) not in _LAYERS or not layer.weight.is_floating_point():
        return False
    dims = 1 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return isinstance(bn, getattr(nn, f"BatchNorm{dims}d")) and bn.num_features == outputs


# --- modules ------------------------------------------------------------------------------------------------
@torch.no_grad()
def _merged(layer: Any, bn: Any) -> nn.Module:
    """The layer with weight * scale and (bias - mean) * scale + shift, a scale an output channel."""
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    scale = scale if bn.weight is None else scale * bn.weight.double()
    bias = -bn.running_mean.double() if layer.bias is None else layer.bias.double() - bn.running_mean.double()
    bias = bias * scale if bn.bias is None else bias * scale + bn.bias.double()
    weight = layer.weight.double()
    ones = [1] * (weight.dim() - 2)
    if type(layer) in _TRANSPOSED:  # [inputs, outputs a group, ...], inputs group by group
        grouped = weight.unflatten(0, (layer.groups, -1)) * scale.view(layer.groups, 1, -1, *ones)
        weight = grouped.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, *ones)
    made = sibling(layer)
    dtype, learns = layer.weight.dtype, layer.weight.requires_grad
    made.weight, made.bias = (nn.Parameter(t.to(dtype), requires_grad=learns) for t in (weight, bias))
    return made


def _activation(bn: Any) -> nn.Module | None:
    act = getattr(bn, "act", None)
    if act == "leaky_relu":
        return nn.LeakyReLU(bn.negative_slope).eval()
    return None if act is None else {"relu": nn.ReLU, "silu": nn.SiLU}[act]().eval()


# --- the graph ----------------------------------------------------------------------------------------------
def _take_out(graph: Graph, bn: Node, layer: Node, keep: bool) -> None:
    """bn(layer(x), residual) becomes layer(x) + residual, under bn's activation where that is to be kept."""
    _, residual = operands(bn, "input", "residual") or (None, None)
    value = layer
    if residual is not None:
        with graph.inserting_before(bn):
            value = graph.call_function(operator.add, (layer, residual))
    if keep:
        bn.args, bn.kwargs = (value,), {}
    else:
        bn.replace_all_uses_with(value)
        graph.erase_node(bn)


def _expect_batch(graph: Graph, layer: Node, dims: int | None) -> None:
    input = layer.args[0] if layer.args else layer.kwargs.get("input")
    if dims is not None and isinstance(input, Node):
        with graph.inserting_before(layer):
            layer.replace_input_with(input, graph.call_function(_batch, (input, dims)))


def _batch(input: Tensor, dims: int) -> Tensor:
    """The input, where its second dimension is the one that BatchNorm1d would have normalized along."""
    if input.dim() != dims:
        shape = list(input.shape)
        raise RuntimeError(f"fold_bn: a folded layer's input has shape {shape}, expected {dims} dimensions")
    return input
