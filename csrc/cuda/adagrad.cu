// AdaGrad on CUDA.
#include "../rules/adagrad.h"
#include "optim.cuh"

namespace onepass::cuda {

const RuleKernels adagrad_kernels[1] = {kernels_of<Adagrad>()};

}  // namespace onepass::cuda
