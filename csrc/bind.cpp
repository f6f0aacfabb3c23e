// The dispatcher's way in: a schema's arguments to rows, one launch. Stable ABI, so one build serves every
// torch from 2.10 on. Schemas are defined in onepass/ops.py; here each op has one line at the foot.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/optim_args.h"
#include "common/torch_view.h"
#include "cpu/launch.h"

namespace onepass {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

static double scalar_of(const char* op, const char* name, const MaybeTensor& t, double otherwise) {
  if (!t) return otherwise;
  const View v = view_of(*t);
  if (v.numel() != 1 || v.dtype != DType::kFloat32 || !v.on_cpu)
    fail(op, ": ", name, " has to be one torch.float32 element on the CPU");
  check_storage(std::string(op) + ": " + name, v);
  return *static_cast<const float*>(v.data);
}

static void check_length(const OptimSpec& spec, const char* list, size_t length, size_t params) {
  if (length != params)
    fail(spec.op, ": ", list, " has ", length, " entries, expected ", params, " as params");
}

static void check_hyper(const OptimSpec& spec, const Tensor& hyper, const std::vector<int64_t>& groups) {
  const View v = view_of(hyper);
  if (v.dtype != DType::kFloat64 || !v.on_cpu || v.dim != 2 || v.sizes[1] != spec.columns ||
      !hyper.is_contiguous())
    fail(spec.op, ": hyper has to be a contiguous torch.float64 tensor [groups, ", spec.columns,
         "] on the CPU, came with shape ", Shape{v});
  check_storage(std::string(spec.op) + ": hyper", v);
  for (int64_t g = 0; g < v.sizes[0]; ++g)
    spec.check(spec, static_cast<const double*>(v.data) + g * spec.columns, g);
  for (size_t i = 0; i < groups.size(); ++i)
    if (groups[i] < 0 || groups[i] >= v.sizes[0])
      fail(Argument{spec.op, "groups", static_cast<int64_t>(i)}, " is ", groups[i], ", but hyper has ",
           v.sizes[0], " rows");
}

// lists: params, grads and the states, in the order of the spec.
static void optim_step(const OptimSpec& spec, bool variant, std::initializer_list<const Tensors*> lists,
                       const Tensors& steps, const Tensor& hyper, const std::vector<int64_t>& groups,
                       const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
  const int streams = spec.streams(variant);
  const Tensors& params = **lists.begin();
  for (int s = 1; s < streams; ++s)
    check_length(spec, spec.lists[s], lists.begin()[s]->size(), params.size());
  check_length(spec, "steps", steps.size(), params.size());
  check_length(spec, "groups", groups.size(), params.size());
  check_hyper(spec, hyper, groups);
  const double scale = scalar_of(spec.op, "grad_scale", grad_scale, 1.0);
  const double skip = scalar_of(spec.op, "found_inf", found_inf, 0.0);

  Launch launch;
  launch.clear();
  std::vector<Layout> layouts(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    View views[kMaxStreams];
    for (int s = 0; s < streams; ++s) views[s] = view_of((*lists.begin()[s])[i]);
    const View step = view_of(steps[i]);
    Row row{};
    check_row(spec, variant, static_cast<int64_t>(i), views, row);
    check_step(spec, static_cast<int64_t>(i), step);
    layouts[i] = layout_of(views, streams);
    row.lie(layouts[i]);
    row.step = step.data;
    row.step_dtype = step.dtype;
    row.t = read_step(step.data, step.dtype) + 1;
    row.group = static_cast<int32_t>(groups[i]);
    launch.add(row);
  }
  check_apart(spec, launch);
  if (skip != 0) return;
  launch.hyper = static_cast<const double*>(hyper.const_data_ptr());
  launch.hyper_columns = spec.columns;
  launch.inv_scale = 1.0 / scale;
  run(launch, current_isa().kernels->optim[spec.kernel][variant]);
}

template <Optimizer kWhich>
static void adam(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs,
                 Tensors max_exp_avg_sqs, Tensors steps, Tensor hyper, std::vector<int64_t> groups,
                 MaybeTensor grad_scale, MaybeTensor found_inf) {
  const bool amsgrad = !max_exp_avg_sqs.empty();
  optim_step(optim_spec(kWhich), amsgrad, {&params, &grads, &exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs}, steps,
             hyper, groups, grad_scale, found_inf);
}

// Hands the tensors of a list to the plan that asked: the one stable way from a Python tensor to its handle.
static void hold(Tensors tensors, int64_t into) { *reinterpret_cast<Tensors*>(into) = std::move(tensors); }

STABLE_TORCH_LIBRARY_FRAGMENT(onepass, m) { m.def("_hold(Tensor[] tensors, int into) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(onepass, CompositeExplicitAutograd, m) { m.impl("_hold", TORCH_BOX(&hold)); }

STABLE_TORCH_LIBRARY_IMPL(onepass, CPU, m) {
  m.impl("adam_", TORCH_BOX(&adam<kAdam>));
  m.impl("adamw_", TORCH_BOX(&adam<kAdamW>));
}

}  // namespace onepass
