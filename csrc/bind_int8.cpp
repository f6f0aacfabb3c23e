// The dispatcher's way in to the 8-bit matrix product, on the CPU. Schemas are defined in onepass/ops.py;
// here each op has a line at the foot.
#include <torch/csrc/stable/library.h>

#include "cpu/int8_launch.h"
#include "cpu/int8_weight_launch.h"
#include "int8_call.h"

namespace onepass {

// --- weights ----------------------------------------------------------------------------------------------
Tensor Int8Arguments::packed_weight(const char* op, const Tensor& t) {
  const View v = view_of(t);
  if (t.scalar_type() != ScalarType::Char || v.dim != 2)
    fail(op, ": weight has to be a torch.int8 tensor [n, k], or one that int8_pack has made");
  check_storage(std::string(op) + ": weight", v);
  const PackedShape shape{v.sizes[0], v.sizes[1]};
  if (shape.k > kMaxDepth) fail(op, ": weight has ", shape.k, " columns, expected at most ", kMaxDepth);
  const Tensor dense = in_order(t);
  Tensor packed = new_on_device_of(t, {shape.bytes()}, ScalarType::Byte);
  if (!int8_pack(static_cast<const int8_t*>(dense.data_ptr()), shape,
                 static_cast<uint8_t*>(packed.data_ptr())))
    fail(op, ": weight holds -128, expected -127..127");
  return packed;
}

static Tensor int8_pack_op(Tensor weight) { return Int8Arguments::packed_weight("int8_pack", weight); }

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

// --- products ---------------------------------------------------------------------------------------------
static Tensor int8_mm_op(Tensor input, Tensor weight, MaybeTensor input_scale, MaybeTensor weight_scale,
                         MaybeTensor input_zero_point, MaybeTensor bias, MaybeName act,
                         std::optional<ScalarType> dtype) {
  const char* op = "int8_mm";
  const ScalarType whole = input.scalar_type(), result = dtype.value_or(ScalarType::Float);
  if (whole != ScalarType::Char && whole != ScalarType::Byte)
    fail(op, ": input has another dtype, expected torch.int8 or torch.uint8");
  if (result == ScalarType::Int && (input_scale || weight_scale || bias || act))
    fail(op, ": dtype torch.int32 takes the sums as they are, without scale, bias and act");
  Int8Arguments a(op, input);
  a.take_weight(weight);
  if (input_scale)
    a.call.x_scale = a.of_rows<float>("input_scale", *input_scale, ScalarType::Float, "torch.float32");
  if (input_zero_point && input_zero_point->numel() > 0)
    a.call.x_zero = a.of_rows<int32_t>("input_zero_point", *input_zero_point, ScalarType::Int, "torch.int32");
  a.take_rest(weight_scale, bias, act);
  a.call.x_is_signed = whole == ScalarType::Char;
  a.check_zeros();
  Tensor y = a.output(result);
  int8_mm(a.call);
  return y;
}

static Tensor int8_linear_op(Tensor input, Tensor weight, Tensor weight_scale, MaybeTensor bias,
                             bool symmetric, int64_t bits, MaybeName act, std::optional<ScalarType> dtype) {
  const char* op = "int8_linear";
  check_real(op, "input", dtype_of(input));
  levels_of(op, symmetric, bits);
  Int8Arguments a(op, input);
  a.take_weight(weight);
  a.take_rest(weight_scale, bias, act);
  a.call.x_is_real = true;
  a.call.x_dtype = dtype_of(input);
  a.call.symmetric = symmetric;
  a.call.bits = static_cast<int32_t>(bits);
  const ScalarType result = dtype.value_or(input.scalar_type());
  if (result == ScalarType::Int)
    fail(op, ": dtype has a dtype that is not served, ", "expected torch.float32, bfloat16 or float16");
  Tensor y = a.output(result);
  int8_mm(a.call);
  return y;
}

static Tensor int8_weight_only_mm_op(Tensor input, Tensor weight, Tensor weight_scale, MaybeTensor bias,
                                     MaybeName act) {
  const char* op = "int8_weight_only_mm";
  check_real(op, "input", dtype_of(input));
  Int8Arguments a(op, input);
  a.take_weight(weight);
  a.take_rest(weight_scale, bias, act);
  a.call.x_is_real = true;
  a.call.x_dtype = dtype_of(input);
  Tensor y = a.output(input.scalar_type());
  int8_weight_only_mm(a.call);
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(onepass, CPU, m) {
  m.impl("int8_pack", TORCH_BOX(&int8_pack_op));
  m.impl("int8_unpack", TORCH_BOX(&int8_unpack_op));
  m.impl("int8_mm", TORCH_BOX(&int8_mm_op));
  m.impl("int8_linear", TORCH_BOX(&int8_linear_op));
  m.impl("int8_weight_only_mm", TORCH_BOX(&int8_weight_only_mm_op));
}

}  // namespace onepass
