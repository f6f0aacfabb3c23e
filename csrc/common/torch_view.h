// A view of a tensor that came through the dispatcher.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

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

// Elements from a tensor's start to the end of its storage.
inline int64_t room_of(AtenTensorHandle t, int64_t element_size) {
  int64_t bytes = 0, offset = 0;
  if (aoti_torch_get_storage_size(t, &bytes) || aoti_torch_get_storage_offset(t, &offset)) return 0;
  return element_size ? bytes / element_size - offset : 0;
}

inline View view_of(const torch::stable::Tensor& t) {
  View v;
  v.data = t.data_ptr();
  v.room = room_of(t.get(), static_cast<int64_t>(t.element_size()));
  v.sizes = t.sizes().data();
  v.strides = t.strides().data();
  v.dim = static_cast<int32_t>(t.dim());
  v.dtype = dtype_of(t);
  v.on_cpu = t.is_cpu();
  v.device_index = v.on_cpu ? 0 : t.get_device_index();
  return v;
}

// The tensor itself where its elements lie in order, else a copy in which they do. Asked for first: a call of
// the dispatcher costs as much as a small kernel.
inline torch::stable::Tensor in_order(const torch::stable::Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// A tensor on the device of another, without the dispatcher.
inline torch::stable::Tensor new_on_device_of(const torch::stable::Tensor& t,
                                              const std::vector<int64_t>& sizes,
                                              torch::headeronly::ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<int64_t>(1, sizes[d]);
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device_index));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               device_type, device_index, &made));
  return torch::stable::Tensor(made);
}

}  // namespace onepass
