// What a kernel needs to know of a tensor, wherever it came from (a dispatcher argument, a Python object).
// A view owns nothing: sizes and strides belong to the tensor and live as long as the call.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace onepass {

struct View {
  void* data = nullptr;
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;
  int32_t dim = 0;
  DType dtype = DType::kOther;
  bool on_cpu = true;
  int32_t device_index = 0;
  int64_t room = 0;  // elements from data to the end of the storage

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < dim; ++d) n *= sizes[d];
    return n;
  }
};

// Does the storage hold all of the view? One that was freed or shrunk does not.
inline bool has_storage(const View& v) {
  int64_t last = 0;
  for (int d = 0; d < v.dim; ++d) {
    if (v.sizes[d] == 0) return true;
    last += (v.sizes[d] - 1) * v.strides[d];
  }
  return last < v.room;
}

inline bool same_sizes(const View& a, const View& b) {
  if (a.dim != b.dim) return false;
  for (int d = 0; d < a.dim; ++d)
    if (a.sizes[d] != b.sizes[d]) return false;
  return true;
}

// Strides of dimensions of size 1 mean nothing and are not compared.
inline bool same_strides(const View& a, const View& b) {
  for (int d = 0; d < a.dim; ++d)
    if (a.sizes[d] != 1 && a.strides[d] != b.strides[d]) return false;
  return true;
}

}  // namespace onepass
