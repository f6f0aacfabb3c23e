// The dispatcher's way in to quantization, on the device that ONEPASS_KEY names: part of onepass._C for the
// CPU, of onepass._cuda for CUDA. Schemas are defined in onepass/ops.py; here each op has a line at the foot.
#include <torch/csrc/stable/library.h>

#include "common/quant_driver.h"
#include "quant_call.h"

namespace onepass {

static std::tuple<Tensor, Tensor, Tensor> quantize_op(Tensor input, MaybeTensor scale, MaybeTensor zero_point,
                                                      int64_t group_size, bool symmetric, int64_t bits) {
  const char* op = "quantize";
  check_real(op, "input", dtype_of(input));
  QuantArguments a(op, "input", input, group_size);
  const Levels levels = levels_of(op, symmetric, bits);
  a.take_grid(scale, zero_point, symmetric, levels);

  Tensor values = a.result(a.sizes(), symmetric ? ScalarType::Char : ScalarType::Byte);
  const auto [scales, zero_points] = a.new_grid(scale, zero_point);
  a.call.dtype = a.given.dtype;
  a.call.real = a.main.data_ptr();
  a.call.whole = values.data_ptr();
  a.call.scratch = a.scratch(quant_scratch(a.call));
  quantize(a.call, scale.has_value(), symmetric, levels);
  return {values, scales, zero_points};
}

static Tensor dequantize_op(Tensor input, Tensor scale, MaybeTensor zero_point, int64_t group_size,
                            std::optional<ScalarType> dtype) {
  const char* op = "dequantize";
  const ScalarType whole = input.scalar_type();
  if (whole != ScalarType::Char && whole != ScalarType::Byte)
    fail(op, ": input has another dtype, expected torch.int8 or torch.uint8");
  QuantArguments a(op, "input", input, group_size);
  a.take_scale(scale);
  if (zero_point && zero_point->numel() > 0) a.take_zero_point(*zero_point);

  Tensor output = a.result(a.sizes(), dtype.value_or(ScalarType::Float));
  check_real(op, "dtype", dtype_of(output));
  a.call.dtype = dtype_of(output);
  a.call.is_signed = whole == ScalarType::Char;
  a.call.whole = a.main.data_ptr();
  a.call.real = output.data_ptr();
  dequantize(a.call);
  return output;
}

#define ONEPASS_LIBRARY_IMPL(key, m) \
  STABLE_TORCH_LIBRARY_IMPL(onepass, key, m)  // puts in what key stands for

ONEPASS_LIBRARY_IMPL(ONEPASS_KEY, m) {
  m.impl("quantize", TORCH_BOX(&quantize_op));
  m.impl("dequantize", TORCH_BOX(&dequantize_op));
}

}  // namespace onepass
