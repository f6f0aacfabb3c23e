// What a step reads of torch's tensors, and tells autograd, without going through Python: which tensor stands
// behind an object, its gradient, its memory; that it was written.
//
// torch's stable ABI reads memory, but has no way from a Python object to a tensor, nor from a tensor to its
// gradient or its negative bit. For the first, the place of the pointer inside the object is looked for once,
// in an object whose pointer is known. For the others, torch has exported the functions below for years; an
// at::Tensor is what an AtenTensorHandle points to. A torch where one is not found is noticed when the module
// loads, and optimizers then step through the dispatcher op.
//
// The same goes for telling autograd of a write: through Python it costs 60 ns a tensor more.
#pragma once
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/c/shim.h>

#include "common/torch_view.h"

namespace onepass {

// c10::TensorImpl::grad() const, at::native::is_neg(at::Tensor const&) and
// torch::autograd::impl::bump_version(at::Tensor const&)
using GradOf = AtenTensorHandle (*)(const void* tensor_impl);
using IsNeg = bool (*)(AtenTensorHandle tensor);
using BumpVersion = void (*)(AtenTensorHandle tensor);

template <class Function>
Function find_in(const char* library, const char* symbol) {
  void* loaded = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  return loaded ? reinterpret_cast<Function>(dlsym(loaded, symbol)) : nullptr;
}

inline GradOf find_grad_of() { return find_in<GradOf>("libc10.so", "_ZNK3c1010TensorImpl4gradEv"); }
inline IsNeg find_is_neg() { return find_in<IsNeg>("libtorch_cpu.so", "_ZN2at6native6is_negERKNS_6TensorE"); }
inline BumpVersion find_bump_version() {
  return find_in<BumpVersion>("libtorch_cpu.so", "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE");
}

inline const void* pointer_at(const void* start, size_t offset) {
  return *reinterpret_cast<const void* const*>(static_cast<const char*>(start) + offset);
}

inline const void* impl_of(pybind11::handle tensor) {
  return reinterpret_cast<const void*>(tensor.attr("_cdata").cast<uintptr_t>());
}

// Where a tensor's Python object holds the pointer to the tensor; 0 where it does not.
inline size_t find_impl_offset(pybind11::handle sample) {
  const void* impl = impl_of(sample);
  const size_t size = static_cast<size_t>(Py_TYPE(sample.ptr())->tp_basicsize);
  for (size_t offset = sizeof(PyObject); offset + sizeof(void*) <= size; offset += sizeof(void*))
    if (pointer_at(sample.ptr(), offset) == impl) return offset;
  return 0;
}

inline DType dtype_of(int32_t torch_dtype) {
  static const int32_t known[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(),
                                  aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16()};
  for (int t = 0; t < 4; ++t)
    if (torch_dtype == known[t]) return static_cast<DType>(t);
  return DType::kOther;
}

inline bool read_shape(AtenTensorHandle tensor, View& v) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  if (aoti_torch_get_dim(tensor, &dim) || aoti_torch_get_sizes(tensor, &sizes) ||
      aoti_torch_get_strides(tensor, &strides))
    return false;
  v.sizes = sizes;
  v.strides = strides;
  v.dim = static_cast<int32_t>(dim);
  return true;
}

// False where the tensor has no memory of its own (sparse, fake, a wrapper).
inline bool view_of(AtenTensorHandle tensor, View& v) {
  static const int32_t strided = aoti_torch_layout_strided(), cpu = aoti_torch_device_type_cpu();
  int32_t layout = 0, dtype = 0, device = 0;
  if (aoti_torch_get_layout(tensor, &layout) || layout != strided ||
      aoti_torch_get_data_ptr(tensor, &v.data) || aoti_torch_get_dtype(tensor, &dtype) ||
      aoti_torch_get_device_type(tensor, &device))
    return false;
  v.dtype = dtype_of(dtype);
  v.on_cpu = device == cpu;
  if (!v.on_cpu && aoti_torch_get_device_index(tensor, &v.device_index)) return false;
  v.room = room_of(tensor, size_of(v.dtype));
  return read_shape(tensor, v);
}

}  // namespace onepass
