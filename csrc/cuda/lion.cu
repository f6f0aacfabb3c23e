// Lion on CUDA.
#include "../rules/lion.h"
#include "optim.cuh"

namespace onepass::cuda {

const RuleKernels lion_kernels[1] = {kernels_of<Lion>()};

}  // namespace onepass::cuda
