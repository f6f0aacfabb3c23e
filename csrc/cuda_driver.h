// How the eager optimizer's plan reaches a CUDA device. onepass._C itself knows nothing of CUDA:
// onepass._cuda brings these functions, and exports them as the object `onepass_cuda_driver`.
#pragma once
#include "common/optim_spec.h"
#include "common/plan.h"

namespace onepass {

// Both work in the order of torch's current stream on that device. groups: rows of launch.hyper. stats: two
// float64 elements on the device, see rules/stats.h.
struct CudaDriver {
  void (*step)(Optimizer which, int variant, const Launch& launch, int64_t groups, int32_t device);
  void (*grad_stats)(const Launch& launch, double* stats, int32_t device);
};

}  // namespace onepass
