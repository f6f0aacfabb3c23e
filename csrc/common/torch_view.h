// A view of a tensor that came through the dispatcher.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "view.h"

namespace onepass {

inline DType dtype_of(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kOther;
  }
}

inline View view_of(const torch::stable::Tensor& t) {
  View v;
  v.data = t.data_ptr();
  v.sizes = t.sizes().data();
  v.strides = t.strides().data();
  v.dim = static_cast<int32_t>(t.dim());
  v.dtype = dtype_of(t);
  v.on_cpu = t.is_cpu();
  v.device_index = v.on_cpu ? 0 : t.get_device_index();
  return v;
}

}  // namespace onepass
