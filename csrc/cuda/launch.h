// Runs an optimizer over a launch on a CUDA device: one kernel for all rows of a dtype.
#pragma once
#include <cuda_runtime_api.h>

#include "../common/optim_spec.h"
#include "../common/plan.h"

namespace onepass::cuda {

// Works on the current device, in the order of `stream`, without waiting for it. groups: rows of
// launch.hyper. Steps of one list come again and again, so its table is kept, up to 64 of them; a list is
// known by device, stream, optimizer, dtype and where its first parameter lies. Throws before the first
// launch, or where the runtime refuses one.
void run(const OptimSpec& spec, bool variant, const Launch& launch, int64_t groups, int device,
         cudaStream_t stream);

}  // namespace onepass::cuda
