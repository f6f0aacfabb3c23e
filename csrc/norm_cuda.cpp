// Normalizations on CUDA for torch: on its current stream.
#include "common/norm_driver.h"
#include "cuda/norm_launch.h"
#include "current.h"

namespace onepass {

int64_t norm_scratch(const NormCall& call) { return cuda::norm_scratch(call); }

void norm_forward(const NormCall& call, const RunningStats& running, double eps) {
  const Current current(call.device);
  cuda::norm_forward(call, running, eps, current.queue());
}

void norm_given(const NormCall& call, const ChannelVector& mean, const ChannelVector& variance, double eps) {
  const Current current(call.device);
  cuda::norm_given(call, mean, variance, eps, current.queue());
}

void norm_backward(const NormCall& call, const ChannelVector& dweight, const ChannelVector& dbias) {
  const Current current(call.device);
  cuda::norm_backward(call, dweight, dbias, current.queue());
}

void norm_moments(const NormCall& call, void* moments) {
  const Current current(call.device);
  cuda::norm_moments(call, moments, current.queue());
}

void norm_apply(const NormCall& call, const void* moments, int64_t processes, const RunningStats& running,
                double eps) {
  const Current current(call.device);
  cuda::norm_apply(call, moments, processes, running, eps, current.queue());
}

void norm_grad_sums(const NormCall& call, void* sums, const ChannelVector& dweight,
                    const ChannelVector& dbias) {
  const Current current(call.device);
  cuda::norm_grad_sums(call, sums, dweight, dbias, current.queue());
}

void norm_grad_apply(const NormCall& call, const void* sums) {
  const Current current(call.device);
  cuda::norm_grad_apply(call, sums, current.queue());
}

}  // namespace onepass
