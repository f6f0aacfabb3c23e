// Adam on CUDA.
#include "../rules/adam.h"
#include "optim.cuh"

namespace onepass::cuda {

const RuleKernels adam_kernels[2] = {kernels_of<AdamRule>(), kernels_of<AdamAmsgrad>()};

}  // namespace onepass::cuda
