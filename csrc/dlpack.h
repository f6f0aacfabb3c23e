// Reads a tensor's memory from its Python object through torch's DLPack exchange table: one C call, no
// Python code, no torch header. The structs restate the DLPack 1.x ABI.
#pragma once
#include <pybind11/pybind11.h>

#include "common/view.h"

namespace onepass {

namespace dlpack {
struct Device {
  int32_t type, id;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t dim;
  DataType dtype;
  int64_t* sizes;
  int64_t* strides;
  uint64_t byte_offset;
};
struct ExchangeTable {
  struct {
    uint32_t major, minor;
    void* previous;
  } header;
  void* allocate;
  void* from_object;
  void* to_object;
  int (*view_object)(void* object, Tensor* out);
  int (*current_stream)(int32_t type, int32_t id, void** out);
};

inline DType dtype_of(DataType t) {
  constexpr uint8_t kFloat = 2, kBFloat = 4;
  if (t.lanes != 1) return DType::kOther;
  if (t.code == kFloat && t.bits == 32) return DType::kFloat32;
  if (t.code == kFloat && t.bits == 64) return DType::kFloat64;
  if (t.code == kFloat && t.bits == 16) return DType::kFloat16;
  if (t.code == kBFloat && t.bits == 16) return DType::kBFloat16;
  return DType::kOther;
}
}  // namespace dlpack

class TensorReader {
 public:
  static const TensorReader& get() {
    static const TensorReader reader;
    return reader;
  }

  // False for anything but a plain torch.Tensor or Parameter that has strided memory.
  bool view(PyObject* object, View& out) const {
    if (Py_TYPE(object) != tensor_ && Py_TYPE(object) != parameter_) return false;
    dlpack::Tensor t;
    if (table_->view_object(object, &t) != 0) {
      PyErr_Clear();  // sparse, a dtype DLPack has no name for ...: the caller's slower way names it
      return false;
    }
    out.data = static_cast<char*>(t.data) + t.byte_offset;
    out.sizes = t.sizes;
    out.strides = t.strides;
    out.dim = t.dim;
    out.dtype = dlpack::dtype_of(t.dtype);
    out.device_type = t.device.type;
    out.device_index = t.device.id;
    return true;
  }

 private:
  TensorReader() {
    namespace py = pybind11;
    py::object tensor = py::module_::import("torch").attr("Tensor");
    py::object parameter = py::module_::import("torch.nn").attr("Parameter");
    py::object table = tensor.attr("__dlpack_c_exchange_api__");
    table_ = static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
    if (!table_) throw py::error_already_set();
    if (table_->header.major != 1) throw std::runtime_error("torch speaks another DLPack than 1.x");
    tensor_ = reinterpret_cast<PyTypeObject*>(tensor.release().ptr());
    parameter_ = reinterpret_cast<PyTypeObject*>(parameter.release().ptr());
  }

  const dlpack::ExchangeTable* table_;
  PyTypeObject* tensor_;
  PyTypeObject* parameter_;
};

}  // namespace onepass
