// The dispatcher's way in on CUDA: the same arguments, rows and checks as on the CPU, launched on torch's
// current stream. Part of onepass._cuda, which loads on a torch built for CUDA and on no other.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/launch.h"
#include "cuda_driver.h"
#include "current.h"
#include "grads_call.h"
#include "optim_call.h"
#include "scale_call.h"

namespace onepass {

static void step_on(Optimizer which, int variant, const Launch& launch, int64_t groups, int32_t device) {
  const Current current(device);
  cuda::step(launch, which, variant, groups, current.queue());
}

static void grad_stats_on(const Launch& launch, double* stats, int32_t device) {
  const Current current(device);
  cuda::grad_stats(launch, stats, current.queue());
}

static void optim_step(const OptimCall& call) {
  std::vector<Layout> layouts;
  const Launch launch = launch_of(call, layouts);
  if (launch.rows.empty()) return;
  step_on(call.spec.kernel, call.variant(), launch, view_of(call.hyper).sizes[0], call.place().device_index);
}

static Tensor grad_stats_op(Tensors grads, MaybeTensor grad_scale) {
  const Place place = place_of("grad_stats", grads);
  std::vector<Layout> layouts;
  Launch launch = grads_launch(place, grads, false, layouts);
  launch.grad_scale = scalar_of(place, "grad_scale", grad_scale);
  Tensor stats = torch::stable::new_empty(grads[0], {2}, torch::headeronly::ScalarType::Double);
  grad_stats_on(launch, static_cast<double*>(stats.data_ptr()), place.device_index);
  return stats;
}

static void clip_grads_op(Tensors grads, Tensor stats, double max_norm) {
  const Place place = place_of("clip_grads_", grads);
  std::vector<Layout> layouts;
  const Launch launch = grads_launch(place, grads, true, layouts);
  const double* const measured = stats_of(place, stats);
  const Current current(place.device_index);
  cuda::clip_grads(launch, measured, max_norm, current.queue());
}

static Tensor unscale_op(Tensors grads, Tensor grad_scale) {
  const Place place = place_of("unscale_", grads.empty() ? Tensors{grad_scale} : grads);
  std::vector<Layout> layouts;
  Launch launch = grads_launch(place, grads, true, layouts);
  launch.grad_scale = scalar_of(place, "grad_scale", grad_scale);
  Tensor stats = torch::stable::new_empty(grad_scale, {2}, torch::headeronly::ScalarType::Double);
  const Current current(place.device_index);
  cuda::unscale_grads(launch, static_cast<double*>(stats.data_ptr()), current.queue());
  return stats;
}

static void accumulate_op(Tensors sums, Tensors grads, MaybeTensor inv_scale) {
  const Place place = place_of("accumulate_", sums);
  std::vector<Layout> layouts;
  const Launch launch = sums_launch(place, sums, grads, layouts);
  const float* const factor = scalar_of(place, "inv_scale", inv_scale);
  const Current current(place.device_index);
  cuda::accumulate(launch, factor, current.queue());
}

static void update_scale_op(Tensor scale, Tensor growth_tracker, Tensor skipped, Tensors found_infs,
                            double growth_factor, double backoff_factor, int64_t growth_interval,
                            int64_t hysteresis, double min_scale, double max_scale) {
  const ScaleCall call =
      scale_call(scale, growth_tracker, skipped, found_infs,
                 {growth_factor, backoff_factor, min_scale, max_scale, growth_interval, hysteresis});
  if (call.found_infs.size() > cuda::kMostFlags)
    fail("update_scale_: found_infs has ", call.found_infs.size(), " entries, expected at most ",
         cuda::kMostFlags);
  cuda::ScaleArgs args{
      call.rule, call.scale, call.growth_tracker, call.skipped, static_cast<int32_t>(call.found_infs.size()),
      {}};
  std::copy(call.found_infs.begin(), call.found_infs.end(), args.found_infs);
  const Current current(scale.get_device_index());
  cuda::update_scale(args, current.queue());
}

// The eager optimizer's way in.
extern "C" {
extern const CudaDriver onepass_cuda_driver __attribute__((visibility("default")));
const CudaDriver onepass_cuda_driver = {step_on, grad_stats_on};
}

STABLE_TORCH_LIBRARY_IMPL(onepass, CUDA, m) {
  ONEPASS_OPTIM_OPS(m, optim_step);
  m.impl("grad_stats", TORCH_BOX(&grad_stats_op));
  m.impl("clip_grads_", TORCH_BOX(&clip_grads_op));
  m.impl("unscale_", TORCH_BOX(&unscale_op));
  m.impl("accumulate_", TORCH_BOX(&accumulate_op));
  m.impl("update_scale_", TORCH_BOX(&update_scale_op));
}

}  // namespace onepass
