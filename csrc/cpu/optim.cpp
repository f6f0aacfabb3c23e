// The CPU kernels of optimizers (a rule each, one driver) and of gradients. Compiled once per instruction
// set.
#include "../rules/adagrad.h"
#include "../rules/adam.h"
#include "../rules/lion.h"
#include "../rules/rmsprop.h"
#include "../rules/sgd.h"
#include "accumulate.h"
#include "as_torch.h"
#include "grads.h"

namespace onepass::ONEPASS_ISA {

// The yardstick of the optimizer benchmarks: AdamW's traffic (4 streams read, 3 written) with next to no
// arithmetic.
static void rmw_probe(float* __restrict p, const float* __restrict g, float* __restrict m,
                      float* __restrict v, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    m[i] += g[i];
    v[i] += g[i];
    p[i] += g[i];
  }
}

extern const KernelTable kernels;
constinit const KernelTable kernels = {
    compiled_features(),
    {
        {multi_tensor<AdamRule>, multi_tensor<AdamAmsgrad>},    // kAdam
        {multi_tensor<AdamWRule>, multi_tensor<AdamWAmsgrad>},  // kAdamW
        {multi_tensor<SgdPlain>, multi_tensor<SgdMomentum>},    // kSgd
        {multi_tensor<RmspropPlain>, multi_tensor<RmspropCentered>, multi_tensor<RmspropMomentum>,
         multi_tensor<RmspropCenteredMomentum>},                    // kRmsprop
        {multi_tensor<Adagrad>},                                    // kAdagrad
        {multi_tensor<Lion>},                                       // kLion
        {adam_as_torch<false, false>, adam_as_torch<false, true>},  // kAdamAsTorch
        {adam_as_torch<true, false>, adam_as_torch<true, true>},    // kAdamWAsTorch
    },
    sum_piece,
    scale_piece,
    unscale_piece,
    accumulate_piece,
    rmw_probe,
};

}  // namespace onepass::ONEPASS_ISA
