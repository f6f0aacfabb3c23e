// An optimizer op's arguments, as they come through the dispatcher, checked and turned into a launch. The
// same for every device: what a device does otherwise stands in bind.cpp and bind_cuda.cpp.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/optim_args.h"
#include "common/torch_view.h"

namespace onepass {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

struct OptimCall {
  const OptimSpec& spec;
  bool variant;
  std::initializer_list<const Tensors*> lists;  // params, grads and the states, in the order of the spec
  const Tensors& steps;
  const Tensor& hyper;
  const std::vector<int64_t>& groups;
  const MaybeTensor &grad_scale, &found_inf;

  const Tensors& params() const { return **lists.begin(); }
  bool on_cpu() const { return params().empty() || params()[0].is_cpu(); }
  int32_t device_index() const { return on_cpu() ? 0 : params()[0].get_device_index(); }
};

inline bool is_here(const OptimCall& call, const View& v) {
  return v.on_cpu == call.on_cpu() && v.device_index == call.device_index();
}

inline std::string place_of(const OptimCall& call) {
  return call.on_cpu() ? "the CPU" : "cuda:" + std::to_string(call.device_index());
}

// The element of an optional scalar argument; null where there is none.
inline const float* scalar_of(const OptimCall& call, const char* name, const MaybeTensor& t) {
  if (!t) return nullptr;
  const View v = view_of(*t);
  if (v.numel() != 1 || v.dtype != DType::kFloat32 || !is_here(call, v))
    fail(call.spec.op, ": ", name, " has to be one torch.float32 element on ", place_of(call));
  check_storage(std::string(call.spec.op) + ": " + name, v);
  return static_cast<const float*>(v.data);
}

inline void check_length(const OptimSpec& spec, const char* list, size_t length, size_t params) {
  if (length != params)
    fail(spec.op, ": ", list, " has ", length, " entries, expected ", params, " as params");
}

// Values are looked at where that does not wait for a device.
inline void check_hyper(const OptimCall& call) {
  const OptimSpec& spec = call.spec;
  const View v = view_of(call.hyper);
  if (v.dtype != DType::kFloat64 || !(v.on_cpu || is_here(call, v)) || v.dim != 2 ||
      v.sizes[1] != spec.columns || !call.hyper.is_contiguous())
    fail(spec.op, ": hyper has to be a contiguous torch.float64 tensor [groups, ", spec.columns,
         "] on the CPU, came with shape ", Shape{v});
  check_storage(std::string(spec.op) + ": hyper", v);
  for (int64_t g = 0; v.on_cpu && g < v.sizes[0]; ++g)
    spec.check(spec, static_cast<const double*>(v.data) + g * spec.columns, g);
  for (size_t i = 0; i < call.groups.size(); ++i)
    if (call.groups[i] < 0 || call.groups[i] >= v.sizes[0])
      fail(Argument{spec.op, "groups", static_cast<int64_t>(i)}, " is ", call.groups[i], ", but hyper has ",
           v.sizes[0], " rows");
}

// Row i without the number of its step. layout: what a row of streams that do not lie alike points to.
inline Row row_of(const OptimCall& call, int64_t i, Layout& layout) {
  const int streams = call.spec.streams(call.variant);
  View views[kMaxStreams];
  for (int s = 0; s < streams; ++s) views[s] = view_of((*call.lists.begin()[s])[i]);
  const View step = view_of(call.steps[i]);
  Row row{};
  if (!is_here(call, views[kParam]))
    fail(Argument{call.spec.op, "params", i}, " is on another device than params[0]");
  check_row(call.spec, call.variant, i, views, row);
  check_step(call.spec, i, step, views[kParam]);
  layout = layout_of(views, streams);
  row.lie(layout);
  row.step = step.data;
  row.step_dtype = step.dtype;
  row.group = static_cast<int32_t>(call.groups[i]);
  return row;
}

// All checks, then the launch. layouts: as long as the launch is used.
inline Launch launch_of(const OptimCall& call, std::vector<Layout>& layouts) {
  const OptimSpec& spec = call.spec;
  const size_t count = call.params().size();
  for (int s = 1; s < spec.streams(call.variant); ++s)
    check_length(spec, spec.lists[s], call.lists.begin()[s]->size(), count);
  check_length(spec, "steps", call.steps.size(), count);
  check_length(spec, "groups", call.groups.size(), count);
  check_hyper(call);

  Launch launch;
  launch.clear();
  launch.grad_scale = scalar_of(call, "grad_scale", call.grad_scale);
  launch.found_inf = scalar_of(call, "found_inf", call.found_inf);
  launch.hyper = static_cast<const double*>(call.hyper.const_data_ptr());
  launch.hyper_columns = spec.columns;
  launch.hyper_on_device = !call.hyper.is_cpu();
  layouts.resize(count);
  for (size_t i = 0; i < count; ++i) launch.add(row_of(call, static_cast<int64_t>(i), layouts[i]));
  check_apart(spec, launch);
  return launch;
}

// The argument list of adam_ and adamw_, on a device whose step is kStep.
template <Optimizer kWhich, void (*kStep)(const OptimCall&)>
void adam(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs,
          Tensors steps, Tensor hyper, std::vector<int64_t> groups, MaybeTensor grad_scale,
          MaybeTensor found_inf) {
  const bool amsgrad = !max_exp_avg_sqs.empty();
  kStep({optim_spec(kWhich),
         amsgrad,
         {&params, &grads, &exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs},
         steps,
         hyper,
         groups,
         grad_scale,
         found_inf});
}

}  // namespace onepass
