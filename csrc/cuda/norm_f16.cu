// Normalizations of float16 on CUDA.
#include "norm_kernels.cuh"

namespace onepass::cuda {

const NormKernels norm_kernels_f16 = kNormKernels<__half>;

}  // namespace onepass::cuda
