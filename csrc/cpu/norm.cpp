// The CPU kernels of normalizations. Compiled once per instruction set.
#include "norm_apply.h"
#include "norm_backward.h"
#include "norm_moments.h"
#include "norm_probe.h"

namespace onepass::ONEPASS_ISA {

#define EACH_DTYPE(kernel, act) \
  {kernel<act, float>, kernel<act, double>, kernel<act, BFloat16>, kernel<act, Float16>}
#define EACH_ACTIVATION(kernel)                                                  \
  {EACH_DTYPE(kernel, Activation::kNone), EACH_DTYPE(kernel, Activation::kRelu), \
   EACH_DTYPE(kernel, Activation::kLeakyRelu), EACH_DTYPE(kernel, Activation::kSilu)}

extern const NormKernels norm_kernels;
constinit const NormKernels norm_kernels = {
    {moments<float>, moments<double>, moments<BFloat16>, moments<Float16>},
    EACH_ACTIVATION(apply),
    EACH_ACTIVATION(grad_sums),
    EACH_ACTIVATION(grad_apply),
    {kInTurn<float>, kInTurn<double>, kInTurn<BFloat16>, kInTurn<Float16>},
    read_probe,
    copy_probe,
};

}  // namespace onepass::ONEPASS_ISA
