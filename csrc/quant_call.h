// The ops of quantization: their arguments checked and turned into what a driver works on.
// onepass/quant_checks.py says the same to those without a compiler, in the same words.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "call.h"
#include "common/quant.h"

namespace onepass {

using torch::headeronly::ScalarType;

using Sizes = std::vector<int64_t>;
struct ListOf {
  const Sizes& sizes;
};
inline std::ostream& operator<<(std::ostream& out, const ListOf& list) {
  out << "[";
  for (size_t d = 0; d < list.sizes.size(); ++d) out << (d ? ", " : "") << list.sizes[d];
  return out << "]";
}

// --- groups -----------------------------------------------------------------------------------------------
// size: elements of a row that share a scale; -1: all of a row, 0: all of the tensor.
inline Groups groups_of(const char* op, const View& v, int64_t size) {
  if (size < -1)
    fail(op, ": group_size is ", size, ", expected -1 (a row), 0 (the whole tensor) or at least 1");
  const int64_t numel = v.numel(), columns = v.dim ? v.sizes[v.dim - 1] : 1;
  if (size == 0) return {1, numel, std::max<int64_t>(1, numel)};
  int64_t rows = 1;
  for (int d = 0; d < v.dim - 1; ++d) rows *= v.sizes[d];
  return {rows, columns, size == -1 ? std::max<int64_t>(1, columns) : size};
}
inline Sizes scale_sizes(const View& v, const Groups& groups, int64_t size) {
  if (size == 0) return {};
  Sizes sizes(v.sizes, v.sizes + std::max(0, v.dim - 1));
  sizes.push_back(groups.of_row());
  return sizes;
}

// --- arguments --------------------------------------------------------------------------------------------
struct QuantArguments {
  const char* op;
  Tensor main;   // what the op is about, contiguous
  View given;    // as it came
  Sizes wanted;  // sizes of scale and zero_point
  QuantCall call;
  std::vector<Tensor> owned;

  QuantArguments(const char* op, const char* name, const Tensor& came, int64_t group_size)
      : op(op), main(stored(op, name, came)), given(view_of(came)) {
    call.groups = groups_of(op, given, group_size);
    call.device = given.device_index;
    wanted = scale_sizes(given, call.groups, group_size);
  }
  static Tensor stored(const char* op, const char* name, const Tensor& came) {
    check_storage(std::string(op) + ": " + name, view_of(came));
    return in_order(came);
  }

  // The memory of another argument, of which dtype and shape are known. why: the shape is that.
  void* other(const char* name, const Tensor& t, ScalarType dtype, const char* dtype_name, const Sizes& sizes,
              const char* why) {
    const View v = view_of(t);
    if (v.on_cpu != given.on_cpu || v.device_index != given.device_index)
      fail(op, ": ", name, " is on another device");
    if (t.scalar_type() != dtype) fail(op, ": ", name, " has another dtype, expected ", dtype_name);
    if (v.dim != static_cast<int>(sizes.size()) || !std::equal(sizes.begin(), sizes.end(), v.sizes))
      fail(op, ": ", name, " has shape ", Shape{v}, ", expected ", ListOf{sizes}, ": ", why);
    check_storage(std::string(op) + ": " + name, v);
    return owned.emplace_back(in_order(t)).data_ptr();
  }
  void take_scale(const Tensor& t) {
    call.scale =
        static_cast<float*>(other("scale", t, ScalarType::Float, "torch.float32", wanted, "a value a group"));
  }
  void take_zero_point(const Tensor& t) {
    call.zero_point = static_cast<int32_t*>(
        other("zero_point", t, ScalarType::Int, "torch.int32", wanted, "a value a group"));
  }
  // Where the grid is, if it is given.
  void take_grid(const MaybeTensor& scale, const MaybeTensor& zero_point, bool symmetric,
                 const Levels& levels) {
    if (zero_point && (symmetric || !scale)) fail(op, ": zero_point needs symmetric=False and a scale");
    if (scale && !symmetric && !zero_point) fail(op, ": scale with symmetric=False needs zero_point");
    call.is_signed = symmetric;
    if (scale) take_scale(*scale);
    if (!zero_point) return;
    take_zero_point(*zero_point);
    for (int64_t g = 0; given.on_cpu && g < call.groups.count(); ++g)  // elsewhere it would take a wait
      if (const int32_t zero = call.zero_point[g]; zero < levels.low || zero > levels.high)
        fail(op, ": zero_point holds ", zero, ", expected 0..", levels.high);
  }

  Sizes sizes() const { return {given.sizes, given.sizes + given.dim}; }
  Tensor result(const Sizes& sizes, ScalarType dtype) const { return new_on_device_of(main, sizes, dtype); }
  // So many bytes of memory for the driver, until the op returns.
  void* scratch(int64_t bytes) {
    return bytes ? owned.emplace_back(result({bytes}, ScalarType::Byte)).data_ptr() : nullptr;
  }
  // scale and zero_point as they are returned: copies of what is given, or room for what will be found.
  std::tuple<Tensor, Tensor> new_grid(const MaybeTensor& scale, const MaybeTensor& zero_point) {
    Tensor scales = result(wanted, ScalarType::Float);
    Tensor zero_points = result(call.is_signed ? Sizes{0} : wanted, ScalarType::Int);
    if (scale) torch::stable::copy_(scales, *scale);
    if (zero_point) torch::stable::copy_(zero_points, *zero_point);
    call.scale = static_cast<float*>(scales.data_ptr());
    call.zero_point = call.is_signed ? nullptr : static_cast<int32_t*>(zero_points.data_ptr());
    return {scales, zero_points};
  }
};

inline void check_real(const char* op, const char* name, DType dtype) {
  if (dtype == DType::kOther || dtype == DType::kFloat64)
    fail(op, ": ", name, " has a dtype that is not served, expected torch.float32, bfloat16 or float16");
}

inline Levels levels_of(const char* op, bool symmetric, int64_t bits) {
  if (bits != 7 && bits != 8) fail(op, ": bits is ", bits, ", expected 7 or 8");
  return Levels::make(symmetric, static_cast<int32_t>(bits));
}

}  // namespace onepass
