// The ops of the 8-bit matrix product: their arguments checked and turned into what a driver works on.
// onepass/int8_checks.py says the same to those without a compiler, in the same words.
#pragma once
#include <algorithm>
#include <cstring>
#include <string>

#include "common/int8.h"
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
  if (v.dim == 1 && v.sizes[0] >= static_cast<int64_t>(sizeof header) && t.is_contiguous() &&
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
  }

  void take_weight(const Tensor& t) {
    const View v = view_of(t);
    if (!v.on_cpu) fail(op, ": weight is on another device than input");
    if (t.scalar_type() == ScalarType::Byte) {
      call.shape = packed_shape(op, "weight", t);
      call.weight = static_cast<const uint8_t*>(v.data);
    } else {
      const Tensor& packed = owned.emplace_back(packed_weight(op, t));
      call.shape = packed_shape(op, "weight", packed);
      call.weight = static_cast<const uint8_t*>(packed.data_ptr());
    }
    if (call.shape.k != given.sizes[given.dim - 1])
      fail(op, ": weight has ", call.shape.k, " columns, expected ", given.sizes[given.dim - 1],
           " as input: it has shape ", Shape{given});
  }
  static Tensor packed_weight(const char* op, const Tensor& t);

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
    if (!v.on_cpu) fail(op, ": ", name, " is on another device than input");
    if (t.scalar_type() != dtype) fail(op, ": ", name, " has another dtype, expected ", dtype_name);
    check_storage(std::string(op) + ": " + name, v);
    return v;
  }
  template <class T>
  const T* side_by_side(const Tensor& t, int64_t n) {
    const Tensor& dense = owned.emplace_back(in_order(t));
    const auto* data = static_cast<const T*>(dense.data_ptr());
    if (t.dim() > 0) return data;
    Tensor repeated = new_on_device_of(t, {n}, t.scalar_type());
    std::fill_n(static_cast<T*>(repeated.data_ptr()), n, *data);
    return static_cast<const T*>(owned.emplace_back(repeated).data_ptr());
  }
  void take_rest(const MaybeTensor& w_scale, const MaybeTensor& bias, const MaybeName& act) {
    if (w_scale) call.w_scale = of_outputs("weight_scale", *w_scale);
    if (bias) call.bias = of_outputs("bias", *bias);
    call.gate = gate_of(op, act);
  }
  // Do sums of (x - zero_point) * w fit?
  void check_zeros() const {
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
    if (!call.raw) check_real(op, "dtype", call.y_dtype);
    call.y = y.data_ptr();
    return y;
  }
};

}  // namespace onepass
