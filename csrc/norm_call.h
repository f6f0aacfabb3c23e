// The ops of normalizations: their arguments checked and turned into what a driver works on. The same for
// every device.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "call.h"
#include "common/norm_args.h"

namespace onepass {

using torch::headeronly::ScalarType;
using MaybeNumber = std::optional<double>;
using MaybeName = std::optional<std::string>;

// The tensor itself where it is dense in one of the two orders, else a copy that is.
inline Tensor dense_image(const Tensor& t) {
  using torch::headeronly::MemoryFormat;
  const View v = view_of(t);
  if (is_dense_image(v, false) || is_dense_image(v, true)) return t;
  const bool last = v.sizes[1] > 1 && v.strides[1] == 1 && (v.dim == 4 || v.dim == 5);
  if (!last) return torch::stable::contiguous(t);
  return torch::stable::contiguous(t, v.dim == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d);
}

// The arguments that a call has, as they are needed again and again. Owns the copies of those that were not
// dense, and what it returns.
struct NormArguments {
  const char* op;
  Tensor input;
  View given;  // the input as it came
  NormCall call;
  std::vector<Tensor> owned;

  NormArguments(const char* op, const Tensor& came, const MaybeName& act, double negative_slope)
      : op(op), input(checked(op, came)), given(view_of(came)) {
    const View v = view_of(input);
    call.shape = norm_shape(v);
    call.dtype = v.dtype;
    call.x = v.data;
    call.device = v.device_index;
    call.act = act ? activation_of(op, *act) : Activation::kNone;
    call.negative_slope = negative_slope;
  }
  static Tensor checked(const char* op, const Tensor& came) {
    check_input(op, view_of(came));
    return dense_image(came);
  }

  ScalarType arithmetic() const {
    return call.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  }
  int64_t channels() const { return call.shape.channels; }

  // The memory of a tensor like the input, in the input's order; null where there is none.
  const void* like_input(const char* name, const MaybeTensor& t, bool any_order) {
    if (!t) return nullptr;
    check_like_input(op, name, view_of(*t), given);
    Tensor dense = dense_image(*t);
    if (!same_strides(view_of(dense), view_of(input))) {
      if (!any_order) fail(op, ": ", name, " has another memory format than input");
      Tensor copy = torch::stable::empty_like(input);
      dense = torch::stable::copy_(copy, dense);
    }
    owned.push_back(dense);
    return dense.data_ptr();
  }
  ChannelVector channel_vector(const char* name, const MaybeTensor& t, bool written = false) const {
    if (!t) return {};
    const View v = view_of(*t);
    check_channels(op, name, v, given, written);
    return {v.data, v.strides[0], v.dtype};
  }
  // One that this op has made itself; none where it is empty.
  ChannelVector made_vector(const Tensor& t) const {
    return t.numel() > 0 ? ChannelVector{t.data_ptr(), 1, dtype_of(t)} : ChannelVector{};
  }
  // A contiguous tensor of this many elements that another of these ops has made.
  void* made(const char* name, const Tensor& t, ScalarType dtype, int64_t numel) const {
    if (t.scalar_type() != dtype || t.numel() != numel || !t.is_contiguous() ||
        view_of(t).on_cpu != given.on_cpu || view_of(t).device_index != given.device_index)
      fail(op, ": ", name, " has ", t.numel(), " elements, expected ", numel,
           ", contiguous, as the forward pass of this input makes it");
    check_storage(std::string(op) + ": " + name, view_of(t));
    return t.data_ptr();
  }

  Tensor new_like_input() { return torch::stable::empty_like(input); }
  Tensor new_flat(int64_t n, ScalarType dtype) const { return torch::stable::new_empty(input, {n}, dtype); }
  Tensor new_channels(int64_t rows) const {
    return torch::stable::new_empty(input, {rows, channels()}, arithmetic());
  }
  int64_t mask_bytes() const { return (call.shape.numel() + 7) / 8; }
};

inline RunningStats running_of(const NormArguments& a, const MaybeTensor& mean, const MaybeTensor& variance,
                               const MaybeTensor& batches, MaybeNumber momentum) {
  RunningStats running;
  running.mean = a.channel_vector("running_mean", mean, true);
  running.variance = a.channel_vector("running_var", variance, true);
  if (batches) {
    const View v = view_of(*batches);
    if (batches->scalar_type() != ScalarType::Long || v.numel() != 1 || v.on_cpu != a.given.on_cpu ||
        v.device_index != a.given.device_index)
      fail(a.op, ": num_batches_tracked has to be one torch.int64 element on the device of input");
    check_storage(std::string(a.op) + ": num_batches_tracked", v);
    running.batches = static_cast<int64_t*>(v.data);
  }
  if (!momentum && !batches && (mean || variance))
    fail(a.op, ": momentum is None, which needs num_batches_tracked");
  running.average = !momentum;
  running.momentum = momentum.value_or(0);
  return running;
}

inline void check_eps(const char* op, double eps, bool zero) {
  if (!(zero ? eps >= 0 : eps > 0)) fail(op, ": eps is ", eps, ", expected ", zero ? ">= 0" : "> 0");
}

inline void check_count(const NormArguments& a) {
  if (a.call.shape.count() == 1)
    fail(a.op, ": expected more than 1 value per channel when training, got input of shape ", Shape{a.given});
}

// What forward passes return: output, stats, mask.
using NormResults = std::tuple<Tensor, Tensor, Tensor>;

inline NormResults forward_results(NormArguments& a, bool saving) {
  const bool mask = saving && keeps_mask(a.call.act, a.call.residual != nullptr);
  NormResults results{a.new_like_input(), a.new_channels(3),
                      a.new_flat(mask ? a.mask_bytes() : 0, ScalarType::Byte)};
  a.call.y = std::get<0>(results).data_ptr();
  a.call.stats = std::get<1>(results).data_ptr();
  a.call.mask = mask ? static_cast<uint8_t*>(std::get<2>(results).data_ptr()) : nullptr;
  return results;
}

// A forward call up to what it returns: its residual, weight and bias.
inline void take_affine(NormArguments& a, const MaybeTensor& residual, const MaybeTensor& weight,
                        const MaybeTensor& bias) {
  a.call.residual = a.like_input("residual", residual, false);
  a.call.weight = a.channel_vector("weight", weight);
  a.call.bias = a.channel_vector("bias", bias);
}

// What a backward pass begins with: what forward was given, and what it saved.
inline void take_saved(NormArguments& a, const Tensor& grad_output, const MaybeTensor& residual,
                       const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& stats,
                       const Tensor& mask) {
  take_affine(a, residual, weight, bias);
  a.call.dy = a.like_input("grad_output", grad_output, true);
  a.call.stats = a.made("stats", stats, a.arithmetic(), 3 * a.channels());
  if (mask.numel() > 0)
    a.call.mask = static_cast<uint8_t*>(a.made("mask", mask, ScalarType::Byte, a.mask_bytes()));
}

// The gradients of input and residual; the latter is empty where it is that of the output, or there is none.
inline std::tuple<Tensor, Tensor> input_grads(NormArguments& a, const MaybeTensor& given) {
  const bool residual = a.call.mask || given;
  std::tuple<Tensor, Tensor> grads{a.new_like_input(),
                                   residual ? a.new_like_input() : a.new_flat(0, a.input.scalar_type())};
  a.call.dx = std::get<0>(grads).data_ptr();
  if (residual) a.call.dresidual = std::get<1>(grads).data_ptr();
  return grads;
}

// Those of weight and bias; empty where there is none.
inline std::tuple<Tensor, Tensor> affine_grads(const NormArguments& a, const MaybeTensor& weight,
                                               const MaybeTensor& bias) {
  const auto grad = [&](const MaybeTensor& t) {
    return torch::stable::new_empty(t ? *t : a.input, {t ? a.channels() : 0});
  };
  return {grad(weight), grad(bias)};
}

}  // namespace onepass
