// The arguments of `update_scale_`, checked. The same for every device.
#pragma once
#include "call.h"
#include "rules/scale.h"

namespace onepass {

struct ScaleCall {
  ScaleRule rule;
  float* scale;
  int32_t* growth_tracker;
  int64_t* skipped;
  std::vector<const float*> found_infs;
};

inline void* element_of(const Place& place, const char* name, const Tensor& t,
                        torch::headeronly::ScalarType dtype, const char* dtype_name, int64_t numel) {
  const View v = view_of(t);
  if (t.scalar_type() != dtype || t.numel() != numel || !t.is_contiguous() || !place.is_here(v))
    fail(place.op, ": ", name, " has to be ", numel == 1 ? "one" : "two", " ", dtype_name, " element",
         numel == 1 ? "" : "s", " on ", place.device());
  check_storage(std::string(place.op) + ": " + name, v);
  return v.data;
}

inline void check_rule(const Place& place, const ScaleRule& rule) {
  // That they grow and back off is for GradScaler's constructor to ask; 1, set later, freezes the scale.
  if (rule.growth_factor != rule.growth_factor) fail(place.op, ": growth_factor is nan, expected a number");
  if (rule.backoff_factor != rule.backoff_factor)
    fail(place.op, ": backoff_factor is nan, expected a number");
  if (rule.hysteresis < 0) fail(place.op, ": hysteresis is ", rule.hysteresis, ", expected >= 0");
  if (!(rule.min_scale >= 0 && rule.min_scale <= rule.max_scale))
    fail(place.op, ": scales from ", rule.min_scale, " to ", rule.max_scale,
         ", expected 0 <= min_scale <= max_scale");
}

inline ScaleCall scale_call(const Tensor& scale, const Tensor& growth_tracker, const Tensor& skipped,
                            const Tensors& found_infs, const ScaleRule& rule) {
  using torch::headeronly::ScalarType;
  const Place place = place_of("update_scale_", {scale});
  check_rule(place, rule);
  ScaleCall call{
      rule,
      static_cast<float*>(element_of(place, "scale", scale, ScalarType::Float, "torch.float32", 1)),
      static_cast<int32_t*>(
          element_of(place, "growth_tracker", growth_tracker, ScalarType::Int, "torch.int32", 1)),
      static_cast<int64_t*>(element_of(place, "skipped", skipped, ScalarType::Long, "torch.int64", 2)),
      {}};
  for (size_t i = 0; i < found_infs.size(); ++i) {
    const std::string name = "found_infs[" + std::to_string(i) + "]";
    call.found_infs.push_back(static_cast<const float*>(
        element_of(place, name.c_str(), found_infs[i], ScalarType::Float, "torch.float32", 1)));
  }
  return call;
}

}  // namespace onepass
