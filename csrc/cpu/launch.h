// Runs kernels over a launch, each in one parallel region on torch's threads. Same bits for any number of
// them.
#pragma once
#include "isa.h"

namespace onepass {

// The step, or what is left of it where inf was found: gradients are zeroed where that was asked for.
void step(const Launch& launch, Optimizer which, int variant);

// stats: [norm of the unscaled gradients, 1 where one of them is not finite, else 0]. Gradients are read last
// row first: the step then begins with those that were read last and may still be in a cache.
void grad_stats(const Launch& launch, double* stats);

// The same, and each gradient times inv_scale.
void unscale_grads(const Launch& launch, double* stats);

// Each gradient, times inv_scale, is added to its sum, which is the parameter of its row.
void accumulate(const Launch& launch, double inv_scale);

// Each gradient times factor; a factor of 1 touches nothing.
void scale_grads(const Launch& launch, double factor);

}  // namespace onepass
