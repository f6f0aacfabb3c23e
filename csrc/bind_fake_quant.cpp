// The dispatcher's way in to fake quantization, on the device that ONEPASS_KEY names: part of onepass._C for
// the CPU, of onepass._cuda for CUDA. Schemas are defined in onepass/ops.py; here each op has a line at the
// foot.
#include <torch/csrc/stable/library.h>

#include "common/fake_quant_driver.h"
#include "quant_call.h"

namespace onepass {

static Sizes mask_sizes(const QuantArguments& a) { return {(a.given.numel() + 7) / 8}; }

static std::tuple<Tensor, Tensor, Tensor, Tensor> fake_quant_fwd_op(Tensor input, MaybeTensor scale,
                                                                    MaybeTensor zero_point,
                                                                    int64_t group_size, bool symmetric,
                                                                    int64_t bits) {
  const char* op = "fake_quant_fwd";
  check_real(op, "input", dtype_of(input));
  QuantArguments a(op, "input", input, group_size);
  const Levels levels = levels_of(op, symmetric, bits);
  a.take_grid(scale, zero_point, symmetric, levels);

  Tensor output = a.result(a.sizes(), input.scalar_type());
  Tensor mask = a.result(mask_sizes(a), ScalarType::Byte);
  const auto [scales, zero_points] = a.new_grid(scale, zero_point);
  FakeQuantCall call{a.call};
  call.levels = levels;
  call.dtype = a.given.dtype;
  call.real = a.main.data_ptr();
  call.output = output.data_ptr();
  call.mask = static_cast<uint8_t*>(mask.data_ptr());
  call.scratch = a.scratch(fake_quantize_scratch(call, scale.has_value()));
  fake_quantize(call, scale.has_value());
  return {output, mask, scales, zero_points};
}

static std::tuple<Tensor, Tensor> fake_quant_bwd_op(Tensor grad_output, Tensor mask, MaybeTensor input,
                                                    MaybeTensor scale, MaybeTensor zero_point,
                                                    int64_t group_size, bool symmetric, int64_t bits) {
  const char* op = "fake_quant_bwd";
  check_real(op, "grad_output", dtype_of(grad_output));
  QuantArguments a(op, "grad_output", grad_output, group_size);
  const Levels levels = levels_of(op, symmetric, bits);
  void* bits_of_mask =
      a.other("mask", mask, ScalarType::Byte, "torch.uint8", mask_sizes(a), "a bit an element");
  if (input.has_value() != scale.has_value()) fail(op, ": input and scale are given both or not at all");
  if (input)
    a.call.real = a.other("input", *input, grad_output.scalar_type(), "that of grad_output", a.sizes(),
                          "that of grad_output");
  a.take_grid(scale, zero_point, symmetric, levels);

  Tensor grad_input = a.result(a.sizes(), grad_output.scalar_type());
  Tensor grad_scale = a.result(scale ? a.wanted : Sizes{0}, ScalarType::Float);
  FakeQuantCall call{a.call};
  call.levels = levels;
  call.dtype = a.given.dtype;
  call.mask = static_cast<uint8_t*>(bits_of_mask);
  call.grad_output = a.main.data_ptr();
  call.grad_input = grad_input.data_ptr();
  call.grad_scale = scale ? static_cast<float*>(grad_scale.data_ptr()) : nullptr;
  call.scratch = a.scratch(fake_quantize_backward_scratch(call));
  fake_quantize_backward(call);
  return {grad_input, grad_scale};
}

#define ONEPASS_LIBRARY_IMPL(key, m) \
  STABLE_TORCH_LIBRARY_IMPL(onepass, key, m)  // puts in what key stands for

ONEPASS_LIBRARY_IMPL(ONEPASS_KEY, m) {
  m.impl("fake_quant_fwd", TORCH_BOX(&fake_quant_fwd_op));
  m.impl("fake_quant_bwd", TORCH_BOX(&fake_quant_bwd_op));
}

}  // namespace onepass
