// Normalizations of float32 on CUDA.
#include "norm_kernels.cuh"

namespace onepass::cuda {

const NormKernels norm_kernels_f32 = kNormKernels<float>;

}  // namespace onepass::cuda
