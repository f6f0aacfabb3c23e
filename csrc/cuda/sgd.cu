// SGD on CUDA.
#include "../rules/sgd.h"
#include "optim.cuh"

namespace onepass::cuda {

const RuleKernels sgd_kernels[2] = {kernels_of<SgdPlain>(), kernels_of<SgdMomentum>()};

}  // namespace onepass::cuda
