// The 8-bit matrix product and its gradients on CUDA for torch: on its current stream.
#include "common/int8_driver.h"
#include "cuda/int8_backward_launch.h"
#include "cuda/int8_launch.h"
#include "current.h"
#include "int8_call.h"

namespace onepass {

Tensor weight_for_kernels(const char*, const Tensor& weight) { return in_order(weight); }

int64_t int8_scratch(const Int8Call& call) { return cuda::int8_scratch(call); }

void int8_mm(const Int8Call& call) {
  const Current current(call.device);
  cuda::int8_mm(call, current.queue());
}

void int8_weight_only_mm(const Int8Call& call) {
  const Current current(call.device);
  cuda::int8_weight_only_mm(call, current.queue());
}

int64_t int8_mm_bwd_scratch(const Int8Backward& call) { return cuda::int8_mm_bwd_scratch(call); }

void int8_mm_bwd(const Int8Backward& call) {
  const Current current(call.device);
  cuda::int8_mm_bwd(call, current.queue());
}

}  // namespace onepass
