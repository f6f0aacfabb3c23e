"""Every row of the op table is whole, and the dispatcher agrees with it."""

import pytest
import torch
from conftest import need
from onepass import backends, call_checks
from onepass.bench import AREAS
from onepass.ops import BY_NAME, OPS, Op
from onepass.testing import CASES
from onepass.testing.verify import overload, written

needs_cpp = pytest.mark.skipif("cpp" not in backends.available(), reason="the C++ kernels are not built")
each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


CPU_ALONE = ("int8_pack", "int8_unpack")  # packing is the CPU's
IN_BYTES = ("quantize", "dequantize", "int8_mm")  # that read or write numbers of one byte


def _has_kernel(op: Op, key: str) -> bool:
    """Of every overload."""
    found = {torch._C._dispatch_has_kernel_for_dispatch_key(f"onepass::{name}", key) for name in op.overloads}
    assert len(found) == 1
    return found.pop()


def test_names_are_unique():
    names = [op.name for op in OPS]
    assert len(set(names)) == len(names)


def test_dispatcher_has_no_op_beside_the_table():
    everything = torch._C._dispatch_get_all_op_names()
    names = {name.removeprefix("onepass::") for name in everything if name.startswith("onepass::")}
    public = {name for name in names if not name.startswith("_")}
    assert public == {name for op in OPS for name in op.overloads}


@each_op
def test_schema_is_the_dispatchers(op: Op):
    for name, schema in op.overloads.items():
        known = getattr(getattr(torch.ops.onepass, op.name), name.partition(".")[2] or "default")
        assert str(known._schema) == str(torch._C.parse_schema(f"onepass::{name}{schema}"))


@each_op
def test_only_the_writing_overload_writes_gradients(op: Op):
    if op.writing:
        more = written(op, {"grads_after": 0}) - written(op, {})
        assert more == {"grads"}


@each_op
def test_name_ends_in_underscore_if_it_writes_what_it_is_about(op: Op):
    """Which comes first. Running statistics that follow a batch are beside it, as in torch's own names."""
    first = overload(op, {})._schema.arguments[0]
    assert op.name.endswith("_") == (first.name in written(op, {}))


@each_op
def test_doc_is_one_line(op: Op):
    assert op.doc.strip() == op.doc and op.doc and "\n" not in op.doc


@each_op
def test_reference_resolves_to_a_function_of_the_same_name(op: Op):
    """Another order of rounding has no formula of its own."""
    assert backends.target(op.reference).__name__ == op.name.replace("_as_torch", "")


@each_op
def test_check_resolves(op: Op):
    assert callable(getattr(call_checks, op.check)) and callable(getattr(call_checks, op.fake))


@each_op
def test_triton_target_resolves(op: Op):
    assert (op.triton is None) == (op.single or op.name in CPU_ALONE)
    if op.triton is not None:
        need("triton")
        assert callable(backends.target(op.triton))


@each_op
def test_has_cases_with_names_of_their_own(op: Op):
    names = [case.name for case in CASES[op.name]]
    assert names and len(set(names)) == len(names)


@each_op
def test_cases_give_the_schemas_arguments(op: Op):
    for case in CASES[op.name]:
        arguments = case(0, case.dtypes[0])
        wanted = {argument.name for argument in overload(op, arguments)._schema.arguments}
        assert set(arguments) == wanted, case.name


@each_op
def test_has_a_benchmark(op: Op):
    assert op.bench in AREAS


@each_op
def test_says_what_it_moves(op: Op):
    streams = op.schema.startswith(("(Tensor(a!)[]", "(Tensor[]", "(Tensor input", "(Tensor grad_output"))
    assert (op.bytes_per_element > 0) == streams
    assert (op.bytes_per_element % 4 == 0) == (op.name not in IN_BYTES)


FEWEST = {  # float32: norm for clipping, loss scale, step. optimizer, optional states: bytes an element
    ("adamw_", 0): 32,
    ("adam_", 0): 32,
    ("adam_", 1): 40,
    ("sgd_", 0): 16,
    ("sgd_", 1): 24,
    ("rmsprop_", 0): 24,
    ("rmsprop_", 1): 32,
    ("rmsprop_", 2): 40,
    ("adagrad_", 0): 24,
    ("lion_", 0): 24,
}


@pytest.mark.parametrize("name, optional", FEWEST)
def test_a_phase_moves_the_fewest_bytes(name: str, optional: int):
    """g read twice, p and each state read and written; the average of weights costs 8 more, zeroing 4.
    That kernels move what the table says is for test_cuda_aot.py and test_triton_aot.py, by machine code."""
    measure, step = BY_NAME["grad_stats"], BY_NAME[name]
    assert measure.bytes_moved() + step.bytes_moved(optional) == FEWEST[name, optional]
    everything = step.bytes_moved(optional, ema=True, grads_written=True)
    assert measure.bytes_moved() + everything == FEWEST[name, optional] + 12


@each_op
def test_has_a_fake(op: Op):
    assert _has_kernel(op, "Meta")


@needs_cpp
@each_op
def test_dispatcher_has_the_kernels_of_the_table(op: Op):
    assert _has_kernel(op, "CPU") == ("CPU" in op.cpp)
    by_cpp = "CUDA" in op.cpp and backends.without_cuda is None
    assert _has_kernel(op, "CUDA") == (by_cpp or (op.triton is not None and backends._has_triton()))


@needs_cpp
@each_op
def test_hyper_has_the_kernels_columns(op: Op):
    assert bool(op.hyper) == ("Tensor hyper" in op.schema)
    if op.hyper:
        assert backends._C.columns(op.name) == len(op.hyper)


def test_cases_belong_to_ops():
    assert set(CASES) == {op.name for op in OPS}
