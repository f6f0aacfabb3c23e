// The dispatcher's way in to the product of real numbers and 8-bit weights, on the device that ONEPASS_KEY
// names, as bind_int8.cpp has it. The schema is defined in onepass/ops.py.
#include <torch/csrc/stable/library.h>

#include "int8_call.h"

namespace onepass {

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

#define ONEPASS_LIBRARY_IMPL(key, m) \
  STABLE_TORCH_LIBRARY_IMPL(onepass, key, m)  // puts in what key stands for

ONEPASS_LIBRARY_IMPL(ONEPASS_KEY, m) { m.impl("int8_weight_only_mm", TORCH_BOX(&int8_weight_only_mm_op)); }

}  // namespace onepass
