// Normalizations of float64 on CUDA.
#include "norm_kernels.cuh"

namespace onepass::cuda {

const NormKernels norm_kernels_f64 = kNormKernels<double>;

}  // namespace onepass::cuda
