// The dispatcher's way in on the CPU: a schema's arguments to rows, one launch. Stable ABI, so one build
// serves every torch from 2.10 on. Schemas are defined in onepass/ops.py; here each op has a line at the
// foot.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/launch.h"
#include "grads_call.h"
#include "optim_call.h"
#include "rules/step.h"
#include "scale_call.h"

namespace onepass {

static void optim_step(const OptimCall& call) {
  std::vector<Layout> layouts;
  Launch launch = launch_of(call, layouts);
  for (Row& row : launch.rows) row.t = read_step(row) + 1;
  step(launch, call.spec.kernel, call.variant());
}

static Tensor grad_stats_op(Tensors grads, MaybeTensor grad_scale) {
  const Place place = place_of("grad_stats", grads);
  std::vector<Layout> layouts;
  Launch launch = grads_launch(place, grads, false, layouts);
  launch.grad_scale = scalar_of(place, "grad_scale", grad_scale);
  Tensor stats = torch::stable::new_empty(grads[0], {2}, torch::headeronly::ScalarType::Double);
  grad_stats(launch, static_cast<double*>(stats.data_ptr()));
  return stats;
}

static void clip_grads_op(Tensors grads, Tensor stats, double max_norm) {
  const Place place = place_of("clip_grads_", grads);
  std::vector<Layout> layouts;
  const Launch launch = grads_launch(place, grads, true, layouts);
  scale_grads(launch, clip_coefficient(max_norm, *stats_of(place, stats)));
}

static Tensor unscale_op(Tensors grads, Tensor grad_scale) {
  const Place place = place_of("unscale_", grads.empty() ? Tensors{grad_scale} : grads);
  std::vector<Layout> layouts;
  Launch launch = grads_launch(place, grads, true, layouts);
  launch.grad_scale = scalar_of(place, "grad_scale", grad_scale);
  Tensor stats = torch::stable::new_empty(grad_scale, {2}, torch::headeronly::ScalarType::Double);
  unscale_grads(launch, static_cast<double*>(stats.data_ptr()));
  return stats;
}

static void accumulate_op(Tensors sums, Tensors grads, MaybeTensor inv_scale) {
  const Place place = place_of("accumulate_", sums);
  std::vector<Layout> layouts;
  const Launch launch = sums_launch(place, sums, grads, layouts);
  const float* factor = scalar_of(place, "inv_scale", inv_scale);
  accumulate(launch, factor ? *factor : 1.0);
}

static void update_scale_op(Tensor scale, Tensor growth_tracker, Tensor skipped, Tensors found_infs,
                            double growth_factor, double backoff_factor, int64_t growth_interval,
                            int64_t hysteresis, double min_scale, double max_scale) {
  const ScaleCall call =
      scale_call(scale, growth_tracker, skipped, found_infs,
                 {growth_factor, backoff_factor, min_scale, max_scale, growth_interval, hysteresis});
  bool overflow = false;
  for (const float* found_inf : call.found_infs) overflow |= *found_inf != 0;
  call.rule(overflow, *call.scale, *call.growth_tracker, call.skipped);
}

// Hands the tensors of a list to the plan that asked: the one stable way from a Python tensor to its handle.
static void hold(Tensors tensors, int64_t into) { *reinterpret_cast<Tensors*>(into) = std::move(tensors); }

STABLE_TORCH_LIBRARY_FRAGMENT(onepass, m) { m.def("_hold(Tensor[] tensors, int into) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(onepass, CompositeExplicitAutograd, m) { m.impl("_hold", TORCH_BOX(&hold)); }

STABLE_TORCH_LIBRARY_IMPL(onepass, CPU, m) {
  ONEPASS_OPTIM_OPS(m, optim_step);
  ONEPASS_OPTIM_OP(m, "adam_as_torch_", kAdamAsTorch, 3, optim_step);
  ONEPASS_OPTIM_OP(m, "adamw_as_torch_", kAdamWAsTorch, 3, optim_step);
  m.impl("grad_stats", TORCH_BOX(&grad_stats_op));
  m.impl("clip_grads_", TORCH_BOX(&clip_grads_op));
  m.impl("unscale_", TORCH_BOX(&unscale_op));
  m.impl("accumulate_", TORCH_BOX(&accumulate_op));
  m.impl("update_scale_", TORCH_BOX(&update_scale_op));
}

}  // namespace onepass
