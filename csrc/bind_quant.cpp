// The dispatcher's way in to quantization, on the CPU. Schemas are defined in onepass/ops.py; here each op
// has a line at the foot.
#include <torch/csrc/stable/library.h>

#include "cpu/quant_launch.h"
#include "quant_call.h"

namespace onepass {

static std::tuple<Tensor, Tensor, Tensor> quantize_op(Tensor input, MaybeTensor scale, MaybeTensor zero_point,
                                                      int64_t group_size, bool symmetric, int64_t bits) {
  const char* op = "quantize";
  check_real(op, "input", dtype_of(input));
  QuantArguments a(op, "input", input, group_size);
  const Levels levels = levels_of(op, symmetric, bits);
  if (zero_point && (symmetric || !scale)) fail(op, ": zero_point needs symmetric=False and a scale");
  if (scale && !symmetric && !zero_point) fail(op, ": scale with symmetric=False needs zero_point");
  if (scale) a.take_scale(*scale);
  if (zero_point) {
    a.take_zero_point(*zero_point);
    for (int64_t g = 0; g < a.call.groups.count(); ++g)
      if (const int32_t zero = a.call.zero_point[g]; zero < levels.low || zero > levels.high)
        fail(op, ": zero_point holds ", zero, ", expected 0..", levels.high);
  }

  const auto result = [&](const Sizes& sizes, ScalarType dtype) {
    return new_on_device_of(a.main, sizes, dtype);
  };
  const View main = view_of(a.main);
  Tensor values =
      result({main.sizes, main.sizes + main.dim}, symmetric ? ScalarType::Char : ScalarType::Byte);
  Tensor scales = result(a.wanted, ScalarType::Float);
  Tensor zero_points = result(symmetric ? Sizes{0} : a.wanted, ScalarType::Int);
  if (scale) {
    torch::stable::copy_(scales, *scale);
    if (zero_point) torch::stable::copy_(zero_points, *zero_point);
  }
  a.call.dtype = a.given.dtype;
  a.call.is_signed = symmetric;
  a.call.real = a.main.data_ptr();
  a.call.whole = values.data_ptr();
  a.call.scale = static_cast<float*>(scales.data_ptr());
  a.call.zero_point = symmetric ? nullptr : static_cast<int32_t*>(zero_points.data_ptr());
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

  const View main = view_of(a.main);
  const Sizes sizes(main.sizes, main.sizes + main.dim);
  Tensor output = new_on_device_of(a.main, sizes, dtype.value_or(ScalarType::Float));
  check_real(op, "dtype", dtype_of(output));
  a.call.dtype = dtype_of(output);
  a.call.is_signed = whole == ScalarType::Char;
  a.call.whole = a.main.data_ptr();
  a.call.real = output.data_ptr();
  dequantize(a.call);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(onepass, CPU, m) {
  m.impl("quantize", TORCH_BOX(&quantize_op));
  m.impl("dequantize", TORCH_BOX(&dequantize_op));
}

}  // namespace onepass
