// The gradient of a parameter, read without Python.
//
// torch's stable ABI has no call for it. c10::TensorImpl::grad() has been exported under the name below since
// torch 1.5 and returns a reference to an at::Tensor, which is what an AtenTensorHandle points to: so it is
// looked up by name, and everything after it goes through the stable ABI. A torch that does not export it is
// noticed when the module loads, and optimizers then step through the dispatcher op.
#pragma once
#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include "common/view.h"

namespace onepass {

using GradOf = AtenTensorHandle (*)(const void* tensor_impl);

inline GradOf grad_of() {
  static const GradOf found = [] {
    void* library = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<GradOf>(dlsym(library, "_ZNK3c1010TensorImpl4gradEv")) : nullptr;
  }();
  return found;
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
  return read_shape(tensor, v);
}

}  // namespace onepass
