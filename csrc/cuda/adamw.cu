// AdamW on CUDA.
#include "../rules/adam.h"
#include "optim.cuh"

namespace onepass::cuda {

const RuleKernels adamw_kernels[2] = {kernels_of<AdamWRule>(), kernels_of<AdamWAmsgrad>()};

}  // namespace onepass::cuda
