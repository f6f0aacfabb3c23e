// RMSprop on CUDA.
#include "../rules/rmsprop.h"
#include "optim.cuh"

namespace onepass::cuda {

const RuleKernels rmsprop_kernels[4] = {kernels_of<RmspropPlain>(), kernels_of<RmspropCentered>(),
                                        kernels_of<RmspropMomentum>(), kernels_of<RmspropCenteredMomentum>()};

}  // namespace onepass::cuda
