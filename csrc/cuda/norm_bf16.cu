// Normalizations of bfloat16 on CUDA.
#include "norm_kernels.cuh"

namespace onepass::cuda {

const NormKernels norm_kernels_bf16 = kNormKernels<__nv_bfloat16>;

}  // namespace onepass::cuda
