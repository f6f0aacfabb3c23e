// Runs optimizers and what belongs to them over a launch on a CUDA device.
//
// Everything is put into a stream, on the current device, and not waited for. Lists come again and again, so
// their tables are kept, up to 64 of them: known by device, stream, kernel and where the first parameter
// lies. Throws before the first launch, or where the runtime refuses one.
#pragma once
#include "../common/optim_spec.h"
#include "kept.h"

namespace onepass::cuda {

// A step: one kernel for all rows of one dtype of parameters and one of states. groups: rows of launch.hyper.
void step(const Launch& launch, Optimizer which, int variant, int64_t groups, Queue queue);

// One kernel. stats: [norm of the unscaled gradients, 1 where one of them is not finite, else 0].
void grad_stats(const Launch& launch, double* stats, Queue queue);

// The same, and each gradient divided by the loss scale.
void unscale_grads(const Launch& launch, double* stats, Queue queue);

// One kernel: each gradient, times the number on the device, if there is one, is added to its sum: the
// parameter of its row.
void accumulate(const Launch& launch, const float* inv_scale, Queue queue);

// One thread. All pointers are to memory of the device.
void update_scale(const ScaleArgs& args, Queue queue);

// One kernel: each gradient times what clips the norm in stats[0] to max_norm.
void clip_grads(const Launch& launch, const double* stats, double max_norm, Queue queue);

}  // namespace onepass::cuda
