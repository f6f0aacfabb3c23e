// The arguments of an optimizer op: checked here, for every caller, before anything is written.
// onepass/checks.py says the same to those without a compiler, in the same words.
#pragma once
#include "check.h"
#include "optim_spec.h"
#include "plan.h"

namespace onepass {

struct Shape {
  const View& view;
};
inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "[";
  for (int d = 0; d < shape.view.dim; ++d) out << (d ? ", " : "") << shape.view.sizes[d];
  return out << "]";
}

template <class Name>
void check_storage(const Name& arg, const View& v) {
  if (!has_storage(v)) fail(arg, " has no storage: it was freed");
}

// Moments of half parameters, and of float32 ones, may be kept in either of these two.
inline bool is_state_dtype(DType state, DType param) {
  if (param == DType::kFloat64) return state == DType::kFloat64;
  return state == DType::kFloat32 || state == DType::kBFloat16;
}

// The dtype that a stream behind the first state has to have, and the gradient. The average of weights moves
// by little at a time: it is never kept in a half dtype.
inline DType wanted_dtype(int stream, int states, const View* views) {
  const DType param = views[kParam].dtype;
  if (stream <= kGrad) return param;
  if (stream == kState + states) return is_half(param) ? DType::kFloat32 : param;
  return views[kState].dtype;
}

// What sums of gradients of this dtype are kept in.
inline DType sum_dtype(DType grad) { return is_half(grad) ? DType::kFloat32 : grad; }

inline void check_dtype(const Argument& arg, int stream, int states, const View* views) {
  const DType came = views[stream].dtype, param = views[kParam].dtype;
  if (stream == kState && states > 0) {
    if (is_state_dtype(came, param)) return;
    const char* wanted = param == DType::kFloat64 ? "torch.float64" : "torch.float32 or torch.bfloat16";
    fail(arg, " has dtype ", name_of(came), ", expected ", wanted, " for ", name_of(param), " parameters");
  }
  const DType wanted = wanted_dtype(stream, states, views);
  if (came == wanted) return;
  if (stream == kGrad && is_half(param)) {  // those may have been summed in float32
    if (came == DType::kFloat32) return;
    fail(arg, " has dtype ", name_of(came), ", expected ", name_of(param), " or torch.float32 for ",
         name_of(param), " parameters");
  }
  if (stream > kState && stream < kState + states)
    fail(arg, " has dtype ", name_of(came), ", expected ", name_of(wanted), " as the first state");
  fail(arg, " has dtype ", name_of(came), ", expected ", name_of(wanted), " for ", name_of(param),
       " parameters");
}

inline void check_stream(const Argument& arg, int stream, int states, const View* views) {
  const View &v = views[stream], &param = views[kParam];
  if (v.on_cpu != param.on_cpu || v.device_index != param.device_index)
    fail(arg, " is on another device than params[", arg.index, "]");
  if (!same_sizes(v, param))
    fail(arg, " has shape ", Shape{v}, ", expected ", Shape{param}, " as params[", arg.index, "]");
  check_dtype(arg, stream, states, views);
  if (stream != kGrad && overlaps_itself(v))
    fail(arg, " has several elements at one address: it cannot be written");
  check_storage(arg, v);
}

inline const char* stream_name(const OptimSpec& spec, int variant, int stream) {
  if (stream < kState) return stream == kParam ? "params" : "grads";
  return spec.state_name(variant, stream - kState);
}

inline void check_step(const OptimSpec& spec, int64_t i, const View& step, const View& param) {
  const Argument arg{spec.op, "steps", i};
  if (step.on_cpu != param.on_cpu || step.device_index != param.device_index)
    fail(arg, " is on another device than params[", i, "]");
  if (step.numel() != 1) fail(arg, " has shape ", Shape{step}, ", expected one element");
  if (step.dtype != DType::kFloat32 && step.dtype != DType::kFloat64)
    fail(arg, " has dtype ", name_of(step.dtype), ", expected torch.float32 or torch.float64");
  check_storage(arg, step);
}

// Writes the row's streams, without layout, step and group. views: as many as `streams`.
inline void check_row(const OptimSpec& spec, int variant, int streams, int64_t i, const View* views,
                      Row& row) {
  if (views[kParam].dtype == DType::kOther)
    fail(Argument{spec.op, "params", i},
         " has a dtype that is not served, expected torch.float32, float64, bfloat16 or float16");
  if (spec.kernel >= kOnEveryDevice && views[kParam].dtype != DType::kFloat32)
    fail(Argument{spec.op, "params", i}, " has dtype ", name_of(views[kParam].dtype),
         ", expected torch.float32");
  for (int s = 0; s < streams; ++s) {
    check_stream({spec.op, stream_name(spec, variant, s), i}, s, spec.states(variant), views);
    row.data[s] = views[s].data;
    row.dtype[s] = views[s].dtype;
  }
}

// A gradient that is written has one address an element.
inline void check_written(const OptimSpec& spec, GradsAfter after, int64_t i, const View& grad) {
  if (after != GradsAfter::kKept && overlaps_itself(grad))
    fail(Argument{spec.op, "grads", i}, " has several elements at one address: it cannot be written");
}

// Two rows over the same memory would be updated side by side, in no order.
inline void check_apart(const OptimSpec& spec, const Launch& launch) {
  std::vector<std::pair<void*, int64_t>> starts;
  for (size_t i = 0; i < launch.rows.size(); ++i)
    if (launch.rows[i].numel > 0) starts.emplace_back(launch.rows[i].data[kParam], i);
  std::sort(starts.begin(), starts.end());
  for (size_t k = 1; k < starts.size(); ++k)
    if (starts[k].first == starts[k - 1].first)
      fail(Argument{spec.op, "params", starts[k].second}, " is the same memory as params[",
           starts[k - 1].second, "]");
}

// Steps done so far; where nobody counts, the first is behind us.
inline double read_step(const Row& row) {
  if (!row.step) return 1;
  return row.step_dtype == DType::kFloat64 ? *static_cast<const double*>(row.step)
                                           : *static_cast<const float*>(row.step);
}

// On the CPU, where looking is free: is this step to be skipped?
inline bool found_inf(const Launch& launch) {
  return (launch.found_inf && *launch.found_inf != 0) || (launch.stats && launch.stats[1] != 0);
}

}  // namespace onepass
