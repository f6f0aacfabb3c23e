// An optimizer op's arguments, as they come through the dispatcher, checked and turned into a launch. The
// same for every device: what a device does otherwise stands in bind.cpp and bind_cuda.cpp.
#pragma once
#include "call.h"

namespace onepass {

struct OptimCall {
  const OptimSpec& spec;
  const Tensors &params, &grads;
  std::initializer_list<const Tensors*> states;  // in the order of the spec; an optional one may be empty
  const Tensors &emas, &steps;
  const Tensor& hyper;
  const std::vector<int64_t>& groups;
  const MaybeTensor &grad_scale, &found_inf, &stats;
  int64_t grads_after;

  Place place() const { return place_of(spec.op, params); }

  // Which of the optional states are there; emas do not count.
  int variant() const {
    int variant = 0;
    for (int k = 0; k < spec.optional; ++k) variant |= !states.begin()[spec.required + k]->empty() << k;
    return variant;
  }

  // The lists that are there, in the order of a row's streams.
  std::vector<const Tensors*> streams() const {
    std::vector<const Tensors*> lists{&params, &grads};
    for (int s = 0; s < spec.required + spec.optional; ++s)
      if (s < spec.required || !states.begin()[s]->empty()) lists.push_back(states.begin()[s]);
    if (!emas.empty()) lists.push_back(&emas);
    return lists;
  }
};

// Values are looked at where that does not wait for a device.
inline void check_hyper(const OptimCall& call) {
  const OptimSpec& spec = call.spec;
  const View v = view_of(call.hyper);
  if (v.dtype != DType::kFloat64 || !(v.on_cpu || call.place().is_here(v)) || v.dim != 2 ||
      v.sizes[1] != spec.columns || !call.hyper.is_contiguous())
    fail(spec.op, ": hyper has to be a contiguous torch.float64 tensor [groups, ", spec.columns,
         "] on the CPU, came with shape ", Shape{v});
  check_storage(std::string(spec.op) + ": hyper", v);
  for (int64_t g = 0; v.on_cpu && g < v.sizes[0]; ++g)
    check_hyper_row(spec, static_cast<const double*>(v.data) + g * spec.columns, g);
  for (size_t i = 0; i < call.groups.size(); ++i)
    if (call.groups[i] < 0 || call.groups[i] >= v.sizes[0])
      fail(Argument{spec.op, "groups", static_cast<int64_t>(i)}, " is ", call.groups[i], ", but hyper has ",
           v.sizes[0], " rows");
}

inline GradsAfter grads_after_of(const OptimCall& call) {
  if (call.grads_after < 0 || call.grads_after > 2)
    fail(call.spec.op, ": grads_after is ", call.grads_after, ", expected 0 (keep), 1 (zero) or 2 (write)");
  return static_cast<GradsAfter>(call.grads_after);
}

// Row i without the number of its step. layout: what a row of streams that do not lie alike points to.
inline Row row_of(const OptimCall& call, const std::vector<const Tensors*>& lists, int64_t i,
                  Layout& layout) {
  const int streams = static_cast<int>(lists.size()), variant = call.variant();
  View views[kMaxStreams];
  for (int s = 0; s < streams; ++s) views[s] = view_of((*lists[s])[i]);
  Row row{};
  if (!call.place().is_here(views[kParam]))
    fail(Argument{call.spec.op, "params", i}, " is on another device than params[0]");
  check_row(call.spec, variant, streams, i, views, row);
  check_written(call.spec, grads_after_of(call), i, views[kGrad]);
  if (!call.steps.empty()) {
    const View step = view_of(call.steps[i]);
    check_step(call.spec, i, step, views[kParam]);
    row.step = step.data;
    row.step_dtype = step.dtype;
  }
  layout = layout_of(views, streams);
  row.lie(layout);
  row.group = static_cast<int32_t>(call.groups[i]);
  return row;
}

// All checks, then the launch. layouts: as long as the launch is used.
inline Launch launch_of(const OptimCall& call, std::vector<Layout>& layouts) {
  const OptimSpec& spec = call.spec;
  const Place place = call.place();
  const size_t count = call.params.size();
  const std::vector<const Tensors*> lists = call.streams();
  const int variant = call.variant();
  for (size_t s = 1; s < lists.size(); ++s)
    check_length(spec.op, stream_name(spec, variant, static_cast<int>(s)), lists[s]->size(), count);
  if (spec.counts == Counts::kAlways || !call.steps.empty())
    check_length(spec.op, "steps", call.steps.size(), spec.counts == Counts::kNever ? 0 : count);
  check_length(spec.op, "groups", call.groups.size(), count);
  check_hyper(call);

  Launch launch;
  launch.clear();
  launch.grad_scale = scalar_of(place, "grad_scale", call.grad_scale);
  launch.found_inf = scalar_of(place, "found_inf", call.found_inf);
  launch.stats = stats_of(place, call.stats);
  launch.grads_after = grads_after_of(call);
  launch.ema = !call.emas.empty();
  launch.hyper = static_cast<const double*>(call.hyper.const_data_ptr());
  launch.hyper_columns = spec.columns;
  launch.hyper_on_device = !call.hyper.is_cpu();
  layouts.resize(count);
  for (size_t i = 0; i < count; ++i) launch.add(row_of(call, lists, static_cast<int64_t>(i), layouts[i]));
  check_apart(spec, launch);
  return launch;
}

// The argument lists of ops with one list of states, and with three, on a device whose step is kStep. As the
// overload `writing` has them, and without what the step leaves in the gradients.
template <Optimizer kWhich, void (*kStep)(const OptimCall&)>
void optim_op(Tensors params, Tensors grads, Tensors states, Tensors emas, Tensors steps, Tensor hyper,
              std::vector<int64_t> groups, MaybeTensor grad_scale, MaybeTensor found_inf, MaybeTensor stats,
              int64_t grads_after) {
  kStep({optim_spec(kWhich),
         params,
         grads,
         {&states},
         emas,
         steps,
         hyper,
         groups,
         grad_scale,
         found_inf,
         stats,
         grads_after});
}

template <Optimizer kWhich, void (*kStep)(const OptimCall&)>
void optim_op3(Tensors params, Tensors grads, Tensors first, Tensors second, Tensors third, Tensors emas,
               Tensors steps, Tensor hyper, std::vector<int64_t> groups, MaybeTensor grad_scale,
               MaybeTensor found_inf, MaybeTensor stats, int64_t grads_after) {
  kStep({optim_spec(kWhich),
         params,
         grads,
         {&first, &second, &third},
         emas,
         steps,
         hyper,
         groups,
         grad_scale,
         found_inf,
         stats,
         grads_after});
}

template <Optimizer kWhich, void (*kStep)(const OptimCall&)>
void reading_op(Tensors params, Tensors grads, Tensors states, Tensors emas, Tensors steps, Tensor hyper,
                std::vector<int64_t> groups, MaybeTensor grad_scale, MaybeTensor found_inf,
                MaybeTensor stats) {
  kStep({optim_spec(kWhich),
         params,
         grads,
         {&states},
         emas,
         steps,
         hyper,
         groups,
         grad_scale,
         found_inf,
         stats,
         0});
}

template <Optimizer kWhich, void (*kStep)(const OptimCall&)>
void reading_op3(Tensors params, Tensors grads, Tensors first, Tensors second, Tensors third, Tensors emas,
                 Tensors steps, Tensor hyper, std::vector<int64_t> groups, MaybeTensor grad_scale,
                 MaybeTensor found_inf, MaybeTensor stats) {
  kStep({optim_spec(kWhich),
         params,
         grads,
         {&first, &second, &third},
         emas,
         steps,
         hyper,
         groups,
         grad_scale,
         found_inf,
         stats,
         0});
}

// All optimizer ops of a device: one line each.
#define ONEPASS_OPTIM_OP(m, name, kWhich, n, kStep)         \
  m.impl(name, TORCH_BOX((&reading_op##n<kWhich, kStep>))); \
  m.impl(name ".writing", TORCH_BOX((&optim_op##n<kWhich, kStep>)))
#define ONEPASS_OPTIM_OPS(m, kStep)                    \
  ONEPASS_OPTIM_OP(m, "adam_", kAdam, 3, kStep);       \
  ONEPASS_OPTIM_OP(m, "adamw_", kAdamW, 3, kStep);     \
  ONEPASS_OPTIM_OP(m, "sgd_", kSgd, , kStep);          \
  ONEPASS_OPTIM_OP(m, "rmsprop_", kRmsprop, 3, kStep); \
  ONEPASS_OPTIM_OP(m, "adagrad_", kAdagrad, , kStep);  \
  ONEPASS_OPTIM_OP(m, "lion_", kLion, , kStep)

}  // namespace onepass
