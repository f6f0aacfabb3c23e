// The ops of the 8-bit matrix product: their arguments checked and turned into what a driver works on.
// onepass/int8_checks.py says the same to those without a compiler, in the same words.
#pragma once
#include <cstring>
#include <string>

#include "common/int8_driver.h"
#include "quant_call.h"

namespace onepass {

using MaybeName = std::optional<std::string>;

inline Gate gate_of(const char* op, const MaybeName& act) {
  if (!act) return Gate::kNone;
  if (*act == "relu") return Gate::kRelu;
  if (*act == "gelu") return Gate::kGelu;
  if (*act == "silu") return Gate::kSilu;
  fail(op, ": act is '", *act, "', expected None, 'relu', 'gelu' or 'silu'");
}

inline PackedShape packed_shape(const char* op, const char* name, const Tensor& t) {
  const View v = view_of(t);
  check_storage(std::string(op) + ": " + name, v);
  PackedHeader header{};
  const bool bytes = t.scalar_type() == ScalarType::Byte;
  if (bytes && v.dim == 1 && v.sizes[0] >= static_cast<int64_t>(sizeof header) && t.is_contiguous() &&
      reinterpret_cast<uintptr_t>(v.data) % alignof(int64_t) == 0)
    std::memcpy(&header, v.data, sizeof header);
  if (header.magic != kPackedMagic) fail(op, ": ", name, " is no packed weight, as int8_pack makes it");
  if (header.version != kPackedVersion)
    fail(op, ": ", name, " was packed as version ", header.version, ", expected ", kPackedVersion,
         ": pack it again");
  const PackedShape shape{header.n, header.k};
  if (shape.n < 0 || shape.k < 0 || shape.n > v.sizes[0] || shape.k > kMaxDepth ||
      shape.bytes() != v.sizes[0])
    fail(op, ": ", name, " has ", v.sizes[0], " bytes, which is no packed [", shape.n, ", ", shape.k, "]");
  return shape;
}

// A weight [n, k] as the kernels of this device read it. The CPU's is packed: csrc/bind_pack.cpp; CUDA's is
// the weight itself, contiguous: csrc/int8_cuda.cpp.
Tensor weight_for_kernels(const char* op, const Tensor& weight);

// [n, k] of a weight that is not packed.
inline PackedShape plain_shape(const char* op, const Tensor& t) {
  const View v = view_of(t);
  if (t.scalar_type() != ScalarType::Char || v.dim != 2)
    fail(op, ": weight has to be a torch.int8 tensor [n, k], or one that int8_pack has made");
  check_storage(std::string(op) + ": weight", v);
  if (v.sizes[1] > kMaxDepth) fail(op, ": weight has ", v.sizes[1], " columns, expected at most ", kMaxDepth);
  return {v.sizes[0], v.sizes[1]};
}

// The arguments of a product. Owns what had to be copied, and what it returns.
struct Int8Arguments {
  const char* op;
  Tensor x;
  View given;  // x as it came
  Int8Call call;
  std::vector<Tensor> owned;
  int64_t rows = 1;

  Int8Arguments(const char* op, const Tensor& came)
      : op(op), x(QuantArguments::stored(op, "input", came)), given(view_of(came)) {
    if (given.dim == 0) fail(op, ": input has no dimension, expected [..., k]");
    call.x = x.data_ptr();
    for (int d = 0, last = given.dim - 1; d < last; ++d) rows *= given.sizes[d];
    call.m = rows;
    call.device = given.device_index;
  }

  bool is_here(const View& v) const {
    return v.on_cpu == given.on_cpu && v.device_index == given.device_index;
  }
  // Takes its shape; returns whether it is packed.
  bool measure_weight(const Tensor& t) {
    const View v = view_of(t);
    const bool packed = t.scalar_type() == ScalarType::Byte;
    if (!is_here(v)) fail(op, ": weight is on another device than input");
    if (packed && !v.on_cpu)
      fail(op, ": weight is packed, which only kernels of the CPU read: give the torch.int8 weight");
    call.shape = packed ? packed_shape(op, "weight", t) : plain_shape(op, t);
    check_depth();
    return packed;
  }
  void take_weight(const Tensor& t) {
    const bool packed = measure_weight(t);
    const Tensor& read = packed ? t : owned.emplace_back(weight_for_kernels(op, t));
    call.weight = static_cast<const uint8_t*>(read.data_ptr());
  }
  void check_depth() const {
    if (call.shape.k != given.sizes[given.dim - 1])
      fail(op, ": weight has ", call.shape.k, " columns, expected ", given.sizes[given.dim - 1],
           " as input: it has shape ", Shape{given});
  }

  // A value a row of x, as quantize leaves them: [..., 1]; or [] for all rows.
  template <class T>
  const T* of_rows(const char* name, const Tensor& t, ScalarType dtype, const char* dtype_name) {
    Sizes column(given.sizes, given.sizes + given.dim);
    column.back() = 1;
    const View v = checked(name, t, dtype, dtype_name);
    if (v.dim > 0 && (v.dim != given.dim || !std::equal(column.begin(), column.end(), v.sizes)))
      fail(op, ": ", name, " has shape ", Shape{v}, ", expected ", ListOf{column}, " or []");
    return side_by_side<T>(t, rows);
  }
  // A value an output: [n] or, as quantize leaves them, [n, 1]; or [] for all outputs.
  const float* of_outputs(const char* name, const Tensor& t) {
    const int64_t n = call.shape.n;
    const View v = checked(name, t, ScalarType::Float, "torch.float32");
    const bool column = v.dim == 2 && v.sizes[1] == 1;
    if (v.dim > 2 || (v.dim == 2 && !column) || (v.dim > 0 && v.sizes[0] != n))
      fail(op, ": ", name, " has shape ", Shape{v}, ", expected [", n, "], [", n, ", 1] or []");
    return side_by_side<float>(t, n);
  }
  View checked(const char* name, const Tensor& t, ScalarType dtype, const char* dtype_name) const {
    const View v = view_of(t);
    if (!is_here(v)) fail(op, ": ", name, " is on another device than input");
    if (t.scalar_type() != dtype) fail(op, ": ", name, " has another dtype, expected ", dtype_name);
    check_storage(std::string(op) + ": " + name, v);
    return v;
  }
  template <class T>
  const T* side_by_side(const Tensor& t, int64_t n) {
    const Tensor& dense = owned.emplace_back(in_order(t));
    if (t.dim() > 0) return static_cast<const T*>(dense.data_ptr());
    Tensor repeated = new_on_device_of(t, {n}, t.scalar_type());
    torch::stable::copy_(repeated, t);
    return static_cast<const T*>(owned.emplace_back(repeated).data_ptr());
  }
  void take_rest(const MaybeTensor& w_scale, const MaybeTensor& bias, const MaybeName& act) {
    if (w_scale) call.w_scale = of_outputs("weight_scale", *w_scale);
    if (bias) call.bias = of_outputs("bias", *bias);
    call.gate = gate_of(op, act);
  }
  // One value for all outputs: [] or [1].
  template <class T>
  const T* of_all(const char* name, const Tensor& t, ScalarType dtype, const char* dtype_name) const {
    const View v = checked(name, t, dtype, dtype_name);
    if (v.dim > 1 || (v.dim == 1 && v.sizes[0] != 1))
      fail(op, ": ", name, " has shape ", Shape{v}, ", expected [1] or []");
    return static_cast<const T*>(v.data);
  }
  void take_output_grid(const MaybeTensor& scale, const MaybeTensor& zero_point) {
    if (scale) call.y_scale = of_all<float>("output_scale", *scale, ScalarType::Float, "torch.float32");
    if (!zero_point) return;
    call.y_zero = of_all<int32_t>("output_zero_point", *zero_point, ScalarType::Int, "torch.int32");
    if (given.on_cpu && (*call.y_zero < 0 || *call.y_zero > 255))  // elsewhere it would take a wait
      fail(op, ": output_zero_point holds ", *call.y_zero, ", expected 0..255");
  }
  // Do sums of (x - zero_point) * w fit? Known on the CPU alone: elsewhere it would take a wait.
  void check_zeros() const {
    if (!given.on_cpu) return;
    const int64_t low = call.x_is_signed ? -128 : 0, high = low + 255;
    for (int64_t i = 0; call.x_zero && i < rows; ++i) {
      const int64_t zero = call.x_zero[i];
      if (127 * call.shape.k * std::max(std::abs(low - zero), std::abs(high - zero)) >= int64_t{1} << 31)
        fail(op, ": input_zero_point holds ", zero, ", which sums of ", call.shape.k,
             " products have no room for");
    }
  }
  Tensor output(ScalarType dtype) {
    Sizes sizes(given.sizes, given.sizes + given.dim);
    sizes.back() = call.shape.n;
    Tensor y = new_on_device_of(x, sizes, dtype);
    call.y_dtype = dtype_of(y);
    call.raw = dtype == ScalarType::Int;
    if (!call.raw && !call.y_scale) check_real(op, "dtype", call.y_dtype);
    call.y = y.data_ptr();
    return y;
  }
};

}  // namespace onepass
