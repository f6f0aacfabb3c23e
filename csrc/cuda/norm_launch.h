// Normalizations on a CUDA device: what ../common/norm_driver.h says, put into a stream of the current device
// and not waited for. Two launches at most. Throws before the first of them, or where the runtime refuses
// one.
#pragma once
#include "../common/norm.h"
#include "kept.h"

namespace onepass::cuda {

int64_t norm_scratch(const NormCall& call);

void norm_forward(const NormCall& call, const RunningStats& running, double eps, Queue queue);
void norm_given(const NormCall& call, const ChannelVector& mean, const ChannelVector& variance, double eps,
                Queue queue);
void norm_backward(const NormCall& call, const ChannelVector& dweight, const ChannelVector& dbias,
                   Queue queue);

void norm_moments(const NormCall& call, void* moments, Queue queue);
void norm_apply(const NormCall& call, const void* moments, int64_t processes, const RunningStats& running,
                double eps, Queue queue);
void norm_grad_sums(const NormCall& call, void* sums, const ChannelVector& dweight,
                    const ChannelVector& dbias, Queue queue);
void norm_grad_apply(const NormCall& call, const void* sums, Queue queue);

}  // namespace onepass::cuda
