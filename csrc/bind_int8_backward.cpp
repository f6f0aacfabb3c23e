// The dispatcher's way in to the gradients of the 8-bit product, on the device that ONEPASS_KEY names, as
// bind_int8.cpp has it. The schema is defined in onepass/ops.py. onepass/int8_backward_checks.py says the
// same to those without a compiler.
#include <torch/csrc/stable/library.h>

#include "int8_call.h"

namespace onepass {

// The weight as it came: plain, or packed.
static void take_weight(Int8Arguments& a, const Tensor& t, Int8Backward& call) {
  if (a.measure_weight(t)) {
    call.packed = static_cast<const uint8_t*>(t.data_ptr());
    return;
  }
  const Tensor& dense = a.owned.emplace_back(in_order(t));
  call.weight = static_cast<const int8_t*>(dense.data_ptr());
  if (!a.given.on_cpu) return;  // elsewhere it would take a wait
  const int8_t* end = call.weight + a.call.shape.n * a.call.shape.k;
  if (std::find(call.weight, end, -128) != end) fail(a.op, ": weight holds -128, expected -127..127");
}

static void take_grad_output(Int8Arguments& a, const Tensor& t, Int8Backward& call) {
  const View v = view_of(t);
  Sizes wanted(a.given.sizes, a.given.sizes + a.given.dim);
  wanted.back() = a.call.shape.n;
  if (v.dim != a.given.dim || !std::equal(wanted.begin(), wanted.end(), v.sizes))
    fail(a.op, ": grad_output has shape ", Shape{v}, ", expected ", ListOf{wanted});
  call.g = a.owned.emplace_back(in_order(t)).data_ptr();
  call.g_dtype = v.dtype;
}

static Tensor gradient(const Int8Arguments& a, bool wanted, const Sizes& sizes, ScalarType dtype,
                       void*& data) {
  Tensor t = new_on_device_of(a.x, wanted ? sizes : Sizes{0}, dtype);
  if (wanted && t.numel() > 0) data = t.data_ptr();
  return t;
}

static std::tuple<Tensor, Tensor> int8_mm_bwd_op(Tensor grad_output, Tensor input, Tensor weight,
                                                 MaybeTensor input_scale, MaybeTensor weight_scale,
                                                 MaybeTensor input_zero_point, std::optional<int64_t> seed,
                                                 bool input_grad, bool weight_grad,
                                                 std::optional<ScalarType> dtype) {
  const char* op = "int8_mm_bwd";
  check_real(op, "grad_output", dtype_of(grad_output));
  if (input.scalar_type() != ScalarType::Char && input.scalar_type() != ScalarType::Byte)
    fail(op, ": input has another dtype, expected torch.int8 or torch.uint8");
  Int8Arguments a(op, input);
  a.call.x_is_signed = input.scalar_type() == ScalarType::Char;
  if (!a.is_here(view_of(grad_output))) fail(op, ": grad_output is on another device than input");
  check_storage(std::string(op) + ": grad_output", view_of(grad_output));

  Int8Backward call;
  take_weight(a, weight, call);
  take_grad_output(a, grad_output, call);
  if (input_scale)
    call.x_scale = a.of_rows<float>("input_scale", *input_scale, ScalarType::Float, "torch.float32");
  if (input_zero_point && input_zero_point->numel() > 0)
    a.call.x_zero = a.of_rows<int32_t>("input_zero_point", *input_zero_point, ScalarType::Int, "torch.int32");
  if (weight_scale) call.w_scale = a.of_outputs("weight_scale", *weight_scale);
  a.check_zeros();
  const ScalarType result = dtype.value_or(grad_output.scalar_type());
  const Sizes of_weight{a.call.shape.n, a.call.shape.k};
  const Sizes of_input(a.given.sizes, a.given.sizes + a.given.dim);
  Tensor grad_input = gradient(a, input_grad, of_input, result, call.grad_input);
  Tensor grad_weight = gradient(a, weight_grad, of_weight, result, call.grad_weight);
  call.dtype = dtype_of(grad_input);
  check_real(op, "dtype", call.dtype);

  call.m = a.call.m;
  call.n = a.call.shape.n;
  call.k = a.call.shape.k;
  call.x = a.call.x;
  call.x_is_signed = a.call.x_is_signed;
  call.x_zero = a.call.x_zero;
  call.by_chance = seed.has_value();
  call.seed = static_cast<uint64_t>(seed.value_or(0));
  call.device = a.call.device;
  if (const int64_t bytes = int8_mm_bwd_scratch(call))
    call.scratch = a.owned.emplace_back(new_on_device_of(a.x, {bytes}, ScalarType::Byte)).data_ptr();
  int8_mm_bwd(call);
  return {grad_input, grad_weight};
}

#define ONEPASS_LIBRARY_IMPL(key, m) \
  STABLE_TORCH_LIBRARY_IMPL(onepass, key, m)  // puts in what key stands for

ONEPASS_LIBRARY_IMPL(ONEPASS_KEY, m) { m.impl("int8_mm_bwd", TORCH_BOX(&int8_mm_bwd_op)); }

}  // namespace onepass
