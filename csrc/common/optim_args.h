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

inline void check_stream(const OptimSpec& spec, int stream, int64_t i, const View& v, const View& param) {
  const Argument arg{spec.op, spec.lists[stream], i};
  if (v.on_cpu != param.on_cpu || v.device_index != param.device_index)
    fail(arg, " is on another device than params[", i, "]");
  if (!same_sizes(v, param))
    fail(arg, " has shape ", Shape{v}, ", expected ", Shape{param}, " as params[", i, "]");
  const DType wanted = stream >= kState && is_half(param.dtype) ? DType::kFloat32 : param.dtype;
  if (v.dtype != wanted)
    fail(arg, " has dtype ", name_of(v.dtype), ", expected ", name_of(wanted), " for ", name_of(param.dtype),
         " parameters");
  if (stream != kGrad && overlaps_itself(v))
    fail(arg, " has several elements at one address: it cannot be written");
  check_storage(arg, v);
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

// Writes the row's streams, without layout, step and group.
inline void check_row(const OptimSpec& spec, bool variant, int64_t i, const View* views, Row& row) {
  const View& param = views[kParam];
  if (param.dtype == DType::kOther)
    fail(Argument{spec.op, "params", i},
         " has a dtype that is not served, expected torch.float32, float64, bfloat16 or float16");
  for (int s = 0; s < spec.streams(variant); ++s) {
    check_stream(spec, s, i, views[s], param);
    row.data[s] = views[s].data;
    row.dtype[s] = views[s].dtype;
  }
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

inline double read_step(const void* step, DType dtype) {
  return dtype == DType::kFloat64 ? *static_cast<const double*>(step) : *static_cast<const float*>(step);
}

}  // namespace onepass
