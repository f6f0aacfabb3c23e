// The dispatcher's way in to the 8-bit matrix product, on the device that ONEPASS_KEY names: part of
// onepass._C for the CPU, of onepass._cuda for CUDA. Schemas are defined in onepass/ops.py; here each op has
// a line at the foot.
#include <torch/csrc/stable/library.h>

#include "int8_call.h"

namespace onepass {

static Tensor product(Int8Arguments& a, ScalarType dtype) {
  const Tensor y = a.output(dtype);
  if (const int64_t bytes = int8_scratch(a.call)) {
    a.call.scratch = a.owned.emplace_back(new_on_device_of(a.x, {bytes}, ScalarType::Byte)).data_ptr();
  }
  int8_mm(a.call);
  return y;
}

// Outputs of which dtype are quantized again, and by what.
static void check_output_grid(const char* op, ScalarType dtype, bool scale, bool zero_point) {
  const bool is_signed = dtype == ScalarType::Char, is_unsigned = dtype == ScalarType::Byte;
  if (scale && !is_signed && !is_unsigned) fail(op, ": output_scale needs dtype torch.int8 or torch.uint8");
  if (zero_point && !is_unsigned) fail(op, ": output_zero_point needs dtype torch.uint8");
  if (!scale && is_signed) fail(op, ": dtype torch.int8 needs output_scale");
  if (!(scale && zero_point) && is_unsigned)
    fail(op, ": dtype torch.uint8 needs output_scale and output_zero_point");
}

static Tensor int8_mm_op(Tensor input, Tensor weight, MaybeTensor input_scale, MaybeTensor weight_scale,
                         MaybeTensor input_zero_point, MaybeTensor bias, MaybeName act,
                         std::optional<ScalarType> dtype, MaybeTensor output_scale,
                         MaybeTensor output_zero_point) {
  const char* op = "int8_mm";
  const ScalarType whole = input.scalar_type(), result = dtype.value_or(ScalarType::Float);
  if (whole != ScalarType::Char && whole != ScalarType::Byte)
    fail(op, ": input has another dtype, expected torch.int8 or torch.uint8");
  if (output_zero_point && output_zero_point->numel() == 0) output_zero_point.reset();
  check_output_grid(op, result, output_scale.has_value(), output_zero_point.has_value());
  if (result == ScalarType::Int && (input_scale || weight_scale || bias || act))
    fail(op, ": dtype torch.int32 takes the sums as they are, without scale, bias and act");
  Int8Arguments a(op, input);
  a.take_weight(weight);
  if (input_scale)
    a.call.x_scale = a.of_rows<float>("input_scale", *input_scale, ScalarType::Float, "torch.float32");
  if (input_zero_point && input_zero_point->numel() > 0)
    a.call.x_zero = a.of_rows<int32_t>("input_zero_point", *input_zero_point, ScalarType::Int, "torch.int32");
  a.take_rest(weight_scale, bias, act);
  a.take_output_grid(output_scale, output_zero_point);
  a.call.x_is_signed = whole == ScalarType::Char;
  a.check_zeros();
  return product(a, result);
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
  return product(a, result);
}

#define ONEPASS_LIBRARY_IMPL(key, m) \
  STABLE_TORCH_LIBRARY_IMPL(onepass, key, m)  // puts in what key stands for

ONEPASS_LIBRARY_IMPL(ONEPASS_KEY, m) {
  m.impl("int8_mm", TORCH_BOX(&int8_mm_op));
  m.impl("int8_linear", TORCH_BOX(&int8_linear_op));
}

}  // namespace onepass
