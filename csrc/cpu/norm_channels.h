// What a normalization computes once a channel, on the CPU: statistics, coefficients, gradients of weight and
// bias.
#pragma once
#include <limits>

#include "isa.h"
// Behind isa.h, which names the namespace.
#include "convert.h"

namespace onepass {

inline double get(const ChannelVector& v, int64_t c) {
  const int64_t at = c * v.stride;
  float single = 0;
  switch (v.dtype) {
    case DType::kFloat64:
      return static_cast<const double*>(v.data)[at];
    case DType::kBFloat16:
      baseline::load(single, static_cast<const baseline::BFloat16*>(v.data)[at]);
      return single;
    case DType::kFloat16:
      baseline::load(single, static_cast<const baseline::Float16*>(v.data)[at]);
      return single;
    default:
      return static_cast<const float*>(v.data)[at];
  }
}
inline double get_or(const ChannelVector& v, int64_t c, double other) { return v.data ? get(v, c) : other; }

inline void set(const ChannelVector& v, int64_t c, double value) {
  if (!v.data) return;
  const int64_t at = c * v.stride;
  const float single = static_cast<float>(value);
  switch (v.dtype) {
    case DType::kFloat64:
      static_cast<double*>(v.data)[at] = value;
      break;
    case DType::kBFloat16:
      baseline::store(static_cast<baseline::BFloat16*>(v.data)[at], single);
      break;
    case DType::kFloat16:
      baseline::store(static_cast<baseline::Float16*>(v.data)[at], single);
      break;
    default:
      static_cast<float*>(v.data)[at] = single;
  }
}

// T: the arithmetic type, that of stats and of the table of coefficients (norm_kernels.h).
template <class T>
struct Channels {
  const NormCall& call;
  Order order;
  T* table;

  // A NaN has nothing in its lower half: vector.h rounds what comes of it without a look.
  void set_column(int64_t k, int64_t c, T value) const {
    const int64_t share = call.shape.share;
    if (value != value) value = std::numeric_limits<T>::quiet_NaN();
    T* row = table + k * call.shape.channels;
    for (int64_t i = c * share; i < (c + 1) * share; ++i) row[order(i)] = value;
  }
  T* stat(int64_t k, int64_t c) const { return static_cast<T*>(call.stats) + k * call.shape.norms() + c; }
  ChannelStats stats(int64_t c) const { return {*stat(0, c), *stat(1, c), *stat(2, c)}; }
  double weight(int64_t c) const { return get_or(call.weight, c, 1); }

  void normalise(int64_t c) const {
    const auto made = Normalise<T>::make(stats(c), weight(c), get_or(call.bias, c, 0));
    set_column(0, c, made.mean);
    set_column(1, c, made.scale);
    set_column(2, c, made.shift);
  }
  void set_stats(int64_t c, double mean, double variance, double eps) const {
    const auto made = ChannelStats::make<T>(mean, variance, eps);
    *stat(0, c) = static_cast<T>(made.mean);
    *stat(1, c) = static_cast<T>(made.mean_low);
    *stat(2, c) = static_cast<T>(made.invstd);
    normalise(c);
  }
  void settle(int64_t c, const Moments& all, const RunningStats& running, double factor, double eps) const {
    set_stats(c, all.mean, all.variance(), eps);
    if (running.mean.data) set(running.mean, c, onepass::running(get(running.mean, c), all.mean, factor));
    if (running.variance.data)
      set(running.variance, c, onepass::running(get(running.variance, c), all.unbiased(), factor));
  }
  void input_grad(int64_t c, double sum, double dot, double count) const {
    const auto made = InputGrad<T>::make(stats(c), weight(c), sum, dot, count);
    set_column(3, c, made.slope);
    set_column(4, c, made.constant);
  }
};

// A channel that met inf, NaN or numbers whose squares overflow, again in double and in two passes: the mean
// then is what torch has, +-inf or NaN, and squares of 1e30 fit.
inline Moments moments_again(const NormCall& call, int64_t channel) {
  const NormShape& s = call.shape;
  const ChannelVector x{const_cast<void*>(call.x), 1, call.dtype};
  const auto each = [&](const auto& body) {
    const int64_t first = channel * s.share;
    for (int64_t image = 0; image < s.images; ++image)
      for (int64_t i = 0; i < s.pixels; ++i)
        for (int64_t c = first; c < first + s.share; ++c)
          body(get(x, s.channels_last ? (image * s.pixels + i) * s.channels + c
                                      : (image * s.channels + c) * s.pixels + i));
  };
  Moments all{static_cast<double>(s.count()), 0, 0};
  each([&](double value) { all.mean += value; });
  all.mean /= all.count;
  each([&](double value) { all.m2 += (value - all.mean) * (value - all.mean); });
  return all;
}

}  // namespace onepass
