// What runs a normalization on a device: csrc/cpu/norm_launch.cpp, or, in onepass._cuda, csrc/norm_cuda.cpp.
// The ops of csrc/bind_norm.cpp call what they are linked with.
#pragma once
#include "norm.h"

namespace onepass {

// Bytes of memory on the device that a driver wants besides a call's tensors: call.scratch points to them.
int64_t norm_scratch(const NormCall& call);

// Statistics of the batch, from x; the running ones follow them; y from both. Writes y, mask and stats.
void norm_forward(const NormCall& call, const RunningStats& running, double eps);

// y from statistics that are given. Writes y, mask and stats.
void norm_given(const NormCall& call, const ChannelVector& mean, const ChannelVector& variance, double eps);

// dx, dresidual and the gradients of weight and bias, from dy, x and stats.
void norm_backward(const NormCall& call, const ChannelVector& dweight, const ChannelVector& dbias);

// --- in halves, for a batch that several processes share --------------------------------------------------
// moments, of the arithmetic type: mean, what its rounding cut off and m2 of each channel, [3, channels], and
// the count behind them.
void norm_moments(const NormCall& call, void* moments);

// norm_forward from the moments of all processes, which lie one behind the other.
void norm_apply(const NormCall& call, const void* moments, int64_t processes, const RunningStats& running,
                double eps);

// sums, of the arithmetic type: sum of g and of g * (x - mean) of each channel, [2, channels], and the count.
void norm_grad_sums(const NormCall& call, void* sums, const ChannelVector& dweight,
                    const ChannelVector& dbias);

// dx and dresidual from the sums of all processes.
void norm_grad_apply(const NormCall& call, const void* sums);

}  // namespace onepass
