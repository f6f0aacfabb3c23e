// How the tensors of a normalization lie in memory, and what is asked of its arguments, before anything is
// written. onepass/norm_checks.py says the same to those without a compiler, in the same words.
#pragma once
#include <string>

#include "norm.h"
#include "optim_args.h"

namespace onepass {

// Do elements lie without gaps as images, channels, pixels (or images, pixels, channels)? Pixels in any
// order.
inline bool is_dense_image(const View& v, bool channels_last) {
  if (v.numel() == 0) return true;
  int64_t step = 1;
  const auto lies = [&](int d) {  // is d what comes next?
    if (v.sizes[d] != 1 && v.strides[d] != step) return false;
    step *= v.sizes[d];
    return true;
  };
  if (channels_last && !lies(1)) return false;
  for (int placed = 2; placed < v.dim; ++placed) {  // the pixels' dimensions, smallest stride first
    int next = 0;
    for (int d = 2; d < v.dim; ++d)
      if (v.sizes[d] != 1 && v.strides[d] == step) next = d;
    if (next) step *= v.sizes[next];
  }
  int64_t pixels = 1;
  for (int d = 2; d < v.dim; ++d) pixels *= v.sizes[d];
  if (step != pixels * (channels_last ? v.sizes[1] : 1)) return false;
  return (channels_last || lies(1)) && lies(0);
}

// Of a tensor that is dense in one of the two orders.
inline NormShape norm_shape(const View& v) {
  NormShape s{v.sizes[0], v.sizes[1], 1, false};
  for (int d = 2; d < v.dim; ++d) s.pixels *= v.sizes[d];
  s.channels_last = is_dense_image(v, true) && (s.pixels == 1 || !is_dense_image(v, false));
  return s;
}

inline DType arithmetic_of(DType stored) { return is_half(stored) ? DType::kFloat32 : stored; }

inline Activation activation_of(const char* op, const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  if (name == "silu") return Activation::kSilu;
  fail(op, ": act is '", name, "', expected None, 'relu', 'leaky_relu' or 'silu'");
}

// The mask of a forward pass has a bit an element; it is kept where a residual hides the pre-activation.
inline bool keeps_mask(Activation act, bool residual) {
  return residual && (act == Activation::kRelu || act == Activation::kLeakyRelu);
}

inline void check_input(const char* op, const View& v) {
  if (v.dim < 2) fail(op, ": input has shape ", Shape{v}, ", expected at least 2 dimensions");
  if (v.dtype == DType::kOther)
    fail(op, ": input has a dtype that is not served, ",
         "expected torch.float32, float64, bfloat16 or float16");
  check_storage(std::string(op) + ": input", v);
}

// A tensor that goes with the input, element by element.
inline void check_like_input(const char* op, const char* name, const View& v, const View& input) {
  if (v.on_cpu != input.on_cpu || v.device_index != input.device_index)
    fail(op, ": ", name, " is on another device than input");
  if (!same_sizes(v, input))
    fail(op, ": ", name, " has shape ", Shape{v}, ", expected ", Shape{input}, " as input");
  if (v.dtype != input.dtype)
    fail(op, ": ", name, " has dtype ", name_of(v.dtype), ", expected ", name_of(input.dtype), " as input");
  check_storage(std::string(op) + ": " + name, v);
}

inline void check_channels(const char* op, const char* name, const View& v, const View& input, bool written) {
  if (v.on_cpu != input.on_cpu || v.device_index != input.device_index)
    fail(op, ": ", name, " is on another device than input");
  if (v.dim != 1 || v.sizes[0] != input.sizes[1])
    fail(op, ": ", name, " has shape ", Shape{v}, ", expected [", input.sizes[1], "]: input has shape ",
         Shape{input});
  const DType wide = arithmetic_of(input.dtype);
  if (v.dtype != wide && v.dtype != input.dtype)
    fail(op, ": ", name, " has dtype ", name_of(v.dtype), ", expected ", name_of(wide),
         wide == input.dtype ? "" : " or ", wide == input.dtype ? "" : name_of(input.dtype), " for ",
         name_of(input.dtype), " input");
  if (written && v.sizes[0] > 1 && v.strides[0] == 0)
    fail(op, ": ", name, " has several elements at one address: it cannot be written");
  check_storage(std::string(op) + ": " + name, v);
}

}  // namespace onepass
