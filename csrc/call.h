// What the ops' ways in have in common: arguments as the dispatcher hands them over, and where they are.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/optim_args.h"
#include "common/torch_view.h"

namespace onepass {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

// An op's name, and the device it works on: that of the first tensor of its main list.
struct Place {
  const char* op;
  bool on_cpu;
  int32_t device_index;

  bool is_here(const View& v) const { return v.on_cpu == on_cpu && v.device_index == device_index; }
  std::string device() const { return on_cpu ? "the CPU" : "cuda:" + std::to_string(device_index); }
};

inline Place place_of(const char* op, const Tensors& main) {
  const bool on_cpu = main.empty() || main[0].is_cpu();
  return {op, on_cpu, on_cpu ? 0 : main[0].get_device_index()};
}

// The element of an optional scalar argument; null where there is none.
inline const float* scalar_of(const Place& place, const char* name, const MaybeTensor& t) {
  if (!t) return nullptr;
  const View v = view_of(*t);
  if (v.numel() != 1 || v.dtype != DType::kFloat32 || !place.is_here(v))
    fail(place.op, ": ", name, " has to be one torch.float32 element on ", place.device());
  check_storage(std::string(place.op) + ": " + name, v);
  return static_cast<const float*>(v.data);
}

// The two elements of a stats argument, as grad_stats leaves them; null where there is none.
inline double* stats_of(const Place& place, const MaybeTensor& t) {
  if (!t) return nullptr;
  const View v = view_of(*t);
  if (v.dim != 1 || v.numel() != 2 || v.strides[0] != 1 || v.dtype != DType::kFloat64 || !place.is_here(v))
    fail(place.op, ": stats has to be a contiguous torch.float64 tensor [2] on ", place.device());
  check_storage(std::string(place.op) + ": stats", v);
  return static_cast<double*>(v.data);
}

inline void check_length(const char* op, const char* list, size_t length, size_t params) {
  if (length != params) fail(op, ": ", list, " has ", length, " entries, expected ", params, " as params");
}

}  // namespace onepass
