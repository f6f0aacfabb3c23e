// The dispatcher's way in to normalizations, on the device that ONEPASS_KEY names: part of onepass._C for the
// CPU, of onepass._cuda for CUDA. Schemas are defined in onepass/ops.py; here each op has a line at the foot.
#include <torch/csrc/stable/library.h>

#include "common/norm_driver.h"
#include "norm_call.h"

namespace onepass {

static void give_scratch(NormArguments& a) {
  const int64_t bytes = norm_scratch(a.call);
  if (bytes) a.call.scratch = a.owned.emplace_back(a.new_flat(bytes, ScalarType::Byte)).data_ptr();
}

static NormResults batch_norm_fwd_op(Tensor input, MaybeTensor residual, MaybeTensor weight, MaybeTensor bias,
                                     MaybeTensor running_mean, MaybeTensor running_var,
                                     MaybeTensor num_batches_tracked, MaybeNumber momentum, double eps,
                                     MaybeName act, double negative_slope, bool saving) {
  NormArguments a("batch_norm_fwd", input, act, negative_slope);
  take_affine(a, residual, weight, bias);
  const RunningStats running = running_of(a, running_mean, running_var, num_batches_tracked, momentum);
  check_eps(a.op, eps, false);
  check_count(a);
  const NormResults results = forward_results(a, saving);
  give_scratch(a);
  norm_forward(a.call, running, eps);
  return results;
}

static NormResults batch_norm_eval_op(Tensor input, MaybeTensor residual, MaybeTensor weight,
                                      MaybeTensor bias, Tensor running_mean, Tensor running_var, double eps,
                                      MaybeName act, double negative_slope, bool saving) {
  NormArguments a("batch_norm_eval", input, act, negative_slope);
  take_affine(a, residual, weight, bias);
  const ChannelVector mean = a.channel_vector("running_mean", running_mean);
  const ChannelVector variance = a.channel_vector("running_var", running_var);
  check_eps(a.op, eps, true);
  const NormResults results = forward_results(a, saving);
  give_scratch(a);
  norm_given(a.call, mean, variance, eps);
  return results;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_bwd_op(Tensor grad_output, Tensor input,
                                                                    MaybeTensor residual, MaybeTensor weight,
                                                                    MaybeTensor bias, Tensor stats,
                                                                    Tensor mask, MaybeName act,
                                                                    double negative_slope, bool training) {
  NormArguments a("batch_norm_bwd", input, act, negative_slope);
  take_saved(a, grad_output, residual, weight, bias, stats, mask);
  a.call.given = !training;
  const auto [dx, dresidual] = input_grads(a, residual);
  const auto [dweight, dbias] = affine_grads(a, weight, bias);
  give_scratch(a);
  norm_backward(a.call, a.made_vector(dweight), a.made_vector(dbias));
  return {dx, dresidual, dweight, dbias};
}

// --- in halves --------------------------------------------------------------------------------------------
static Tensor batch_norm_stats_op(Tensor input) {
  NormArguments a("batch_norm_stats", input, std::nullopt, 0);
  Tensor moments = a.new_flat(3 * a.channels() + 1, a.arithmetic());
  give_scratch(a);
  norm_moments(a.call, moments.data_ptr());
  return moments;
}

static NormResults batch_norm_apply_op(Tensor input, MaybeTensor residual, MaybeTensor weight,
                                       MaybeTensor bias, Tensor moments, MaybeTensor running_mean,
                                       MaybeTensor running_var, MaybeTensor num_batches_tracked,
                                       MaybeNumber momentum, double eps, MaybeName act, double negative_slope,
                                       bool saving) {
  NormArguments a("batch_norm_apply", input, act, negative_slope);
  take_affine(a, residual, weight, bias);
  const RunningStats running = running_of(a, running_mean, running_var, num_batches_tracked, momentum);
  check_eps(a.op, eps, false);
  const int64_t size = 3 * a.channels() + 1, processes = std::max<int64_t>(1, moments.numel() / size);
  const void* all = a.made("moments", moments, a.arithmetic(), processes * size);
  const NormResults results = forward_results(a, saving);
  give_scratch(a);
  norm_apply(a.call, all, processes, running, eps);
  return results;
}

static std::tuple<Tensor, Tensor, Tensor> batch_norm_bwd_stats_op(Tensor grad_output, Tensor input,
                                                                  MaybeTensor residual, MaybeTensor weight,
                                                                  MaybeTensor bias, Tensor stats, Tensor mask,
                                                                  MaybeName act, double negative_slope) {
  NormArguments a("batch_norm_bwd_stats", input, act, negative_slope);
  take_saved(a, grad_output, residual, weight, bias, stats, mask);
  const auto [dweight, dbias] = affine_grads(a, weight, bias);
  Tensor sums = a.new_flat(2 * a.channels() + 1, a.arithmetic());
  give_scratch(a);
  norm_grad_sums(a.call, sums.data_ptr(), a.made_vector(dweight), a.made_vector(dbias));
  return {sums, dweight, dbias};
}

static std::tuple<Tensor, Tensor> batch_norm_bwd_apply_op(Tensor grad_output, Tensor input,
                                                          MaybeTensor residual, MaybeTensor weight,
                                                          MaybeTensor bias, Tensor stats, Tensor mask,
                                                          Tensor sums, MaybeName act, double negative_slope) {
  NormArguments a("batch_norm_bwd_apply", input, act, negative_slope);
  take_saved(a, grad_output, residual, weight, bias, stats, mask);
  const void* all = a.made("sums", sums, a.arithmetic(), 2 * a.channels() + 1);
  const auto [dx, dresidual] = input_grads(a, residual);
  give_scratch(a);
  norm_grad_apply(a.call, all);
  return {dx, dresidual};
}

#define ONEPASS_LIBRARY_IMPL(key, m) \
  STABLE_TORCH_LIBRARY_IMPL(onepass, key, m)  // puts in what key stands for

ONEPASS_LIBRARY_IMPL(ONEPASS_KEY, m) {
  m.impl("batch_norm_fwd", TORCH_BOX(&batch_norm_fwd_op));
  m.impl("batch_norm_bwd", TORCH_BOX(&batch_norm_bwd_op));
  m.impl("batch_norm_eval", TORCH_BOX(&batch_norm_eval_op));
  m.impl("batch_norm_stats", TORCH_BOX(&batch_norm_stats_op));
  m.impl("batch_norm_apply", TORCH_BOX(&batch_norm_apply_op));
  m.impl("batch_norm_bwd_stats", TORCH_BOX(&batch_norm_bwd_stats_op));
  m.impl("batch_norm_bwd_apply", TORCH_BOX(&batch_norm_bwd_apply_op));
}

}  // namespace onepass
