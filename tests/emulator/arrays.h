// NumPy's arrays as the memory of an emulated device: what bindings of ops on single tensors have in common.
// A bfloat16 array is one of uint16, which NumPy has.
#pragma once
#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/dtype.h"
#include "cuda/kept.h"

namespace py = pybind11;
using namespace onepass;

using MaybeArray = std::optional<py::array>;

inline DType dtype_of(const py::array& a) {
  if (py::isinstance<py::array_t<float>>(a)) return DType::kFloat32;
  if (py::isinstance<py::array_t<uint16_t>>(a)) return DType::kBFloat16;
  return a.itemsize() == 2 ? DType::kFloat16 : DType::kOther;
}
template <class T = void>
T* data_of(const MaybeArray& a) {
  return a && a->size() ? static_cast<T*>(const_cast<void*>(a->data())) : nullptr;
}

constexpr cuda::Queue kQueue{0, nullptr};

inline void wait_for_stream() {
  if (cudaStreamSynchronize(nullptr) != cudaSuccess) throw std::runtime_error("the stream failed");
}

// Memory of so many bytes, as the allocator of torch has it: at a multiple of 16.
struct Scratch {
  std::vector<uint4> memory;
  explicit Scratch(int64_t bytes) : memory(bytes / sizeof(uint4) + 1, uint4{~0u, ~0u, ~0u, ~0u}) {}
  void* data() { return memory.data(); }
};
