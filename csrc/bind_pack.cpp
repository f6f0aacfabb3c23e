// The dispatcher's way in to packed weights, which are the CPU's. Schemas are defined in onepass/ops.py; here
// each op has a line at the foot.
#include <torch/csrc/stable/library.h>

#include "cpu/int8_launch.h"
#include "int8_call.h"

namespace onepass {

Tensor weight_for_kernels(const char* op, const Tensor& weight) {
  const PackedShape shape = plain_shape(op, weight);
  const Tensor dense = in_order(weight);
  Tensor packed = new_on_device_of(weight, {shape.bytes()}, ScalarType::Byte);
  if (!int8_pack(static_cast<const int8_t*>(dense.data_ptr()), shape,
                 static_cast<uint8_t*>(packed.data_ptr())))
    fail(op, ": weight holds -128, expected -127..127");
  return packed;
}

static Tensor int8_pack_op(Tensor weight) { return weight_for_kernels("int8_pack", weight); }

static Tensor int8_unpack_op(Tensor packed, int64_t n, int64_t k) {
  const char* op = "int8_unpack";
  const PackedShape shape{n, k};
  if (n < 0 || k < 0 || shape.bytes() != packed.numel())
    fail(op, ": packed has ", packed.numel(), " bytes, which is no packed [", n, ", ", k, "]");
  const PackedShape found = packed_shape(op, "packed", packed);
  if (found.n != n || found.k != k) fail(op, ": packed holds another weight than [", n, ", ", k, "]");
  Tensor weight = new_on_device_of(packed, {n, k}, ScalarType::Char);
  int8_unpack(static_cast<const uint8_t*>(packed.data_ptr()), static_cast<int8_t*>(weight.data_ptr()));
  return weight;
}

STABLE_TORCH_LIBRARY_IMPL(onepass, CPU, m) {
  m.impl("int8_pack", TORCH_BOX(&int8_pack_op));
  m.impl("int8_unpack", TORCH_BOX(&int8_unpack_op));
}

}  // namespace onepass
