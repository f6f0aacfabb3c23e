// Room 2, memory on the CPU: the gradients of a normalization.
//
// Memory contract. `grad_sums` reads dy and x once (and the mask, or residual for an activation that needs
// it); `grad_apply` reads the same once and writes dx once. dresidual, where it is wanted, is written once,
// by `grad_sums` if the call's flow is `early`, else by `grad_apply`. With given statistics dx needs x for
// the activation alone.
#pragma once
#include <type_traits>

#include "norm_memory.h"

namespace onepass::ONEPASS_ISA {

constexpr int64_t kGradChunk = 1024;       // elements of a channel whose gradients are summed in T
constexpr int64_t kGradChunkPixels = 512;  // and where channels are innermost
constexpr int kGradStrands = 2;

// How a gradient is told that passes an activation: by a mask's bits, by such bits where runs are of whole
// vectors, which takes a third of the instructions, from x, or from x and residual.
enum class By { kBits, kWholeBits, kInput, kInputAndResidual };

// The gradients of pre-activations from element `at` on.
template <Activation act, By by, class S_>
struct Gated {
  using S = S_;
  static constexpr bool kExact = act == Activation::kNone || act == Activation::kRelu;  // those of dy, or 0
  const S *dy, *x, *z;
  const uint8_t* mask;
  int64_t at;
  Arithmetic<S> negative_slope;

  Gated(const NormCall& call, int64_t at)
      : dy(elements<S>(call.dy, at)),
        x(elements<S>(call.x, at)),
        z(elements<S>(call.residual, at)),
        mask(call.mask),
        at(at),
        negative_slope(static_cast<Arithmetic<S>>(call.negative_slope)) {}

  // Of the lanes i, i + 1 ...; xs: the elements of x there.
  template <class Lanes>
  ONEPASS_INLINE Vector<S> operator()(int64_t i, Lanes lanes, Vector<S> xs, Vector<S> mean, Vector<S> scale,
                                      Vector<S> shift) const {
    const Vector<S> g = lanes.load(dy + i);
    if constexpr (act == Activation::kNone) return g;
    if constexpr (by == By::kBits || by == By::kWholeBits)
      return gate<act>(g, read_lanes<by == By::kWholeBits>(mask, at + i, lanes), negative_slope);
    Vector<S> v = normalise(xs, mean, scale, shift);
    if constexpr (by == By::kInputAndResidual) v += lanes.load(z + i);
    return activation_grad<act>(g, v, negative_slope);
  }
};

// --- sums -------------------------------------------------------------------------------------------------
template <class V>
ONEPASS_INLINE void add_grad(V g, V x, V mean, V& s, V& d) {
  s += g;
  d = multiply_add(g, x - mean, d);
}

template <class G, class S = G::S>
ONEPASS_INLINE void add_grad_run(const G gated, S* dz, int64_t n, const Coefficients<S, Same>& table,
                                 bool past, bool ahead, double& sum, double& dot) {
  Vector<S> s[kSums] = {}, d[kSums] = {};
  const Vector<S> mean = table.mean.value, scale = table.scale.value, shift = table.shift.value;
  const auto add = [&](int64_t i, auto lanes, int j) ONEPASS_FLAT {
    const Vector<S> g = gated(i, lanes, lanes.load(gated.x + i), mean, scale, shift);
    add_grad(lanes.fresh(g), lanes.load(gated.x + i, mean), mean, s[j], d[j]);
    return g;
  };
  constexpr int kOfLine = std::min(kLineVectors<S>, kSums);
  int64_t i = 0;
  for (; i + kSums * kLanes<S> <= n; i += kSums * kLanes<S>) {
    if (ahead) {
      ask_ahead<kSums * kLanes<S>>(gated.x + i);
      ask_ahead<kSums * kLanes<S>>(gated.dy + i);
    }
    Vector<S> g[kSums / kOfLine][kOfLine];
    each<kSums>([&](auto j) ONEPASS_FLAT {
      g[j / kOfLine][j % kOfLine] = add(i + j * kLanes<S>, InLine<S, j>{}, j);
    });
    if (dz)
      each<kSums / kOfLine>([&](auto l) ONEPASS_FLAT {
        store_vectors<G::kExact>(dz + i + l * kOfLine * kLanes<S>, g[l], past);
      });
  }
  for_each_vector<S>(i, n, [&](int64_t at, auto lanes) ONEPASS_FLAT {
    const Vector<S> g = add(at, lanes, 0);
    if (dz) lanes.store(dz + at, g, past);
  });
  sum += sum_of<S>((s[0] + s[1]) + (s[2] + s[3]));
  dot += sum_of<S>((d[0] + d[1]) + (d[2] + d[3]));
}

template <class G, class S = G::S>
void planar_grad_sums(const NormCall& call, const void* table, NormBlock block, double* sum, double* dot) {
  const int64_t pixels = call.shape.pixels, channels = call.shape.channels;
  Stage<S> dz(call, call.flow.early ? call.dresidual : nullptr);
  const auto add = [&](int64_t from, int64_t to) {
    dz.for_each_piece(from, to, [&](int64_t at, int64_t n) {
      for (Run run(call.shape, at, n); run.count; run.next()) {
        const Coefficients<S, Same> here(table, channels, run.channel);
        const int64_t c = run.channel - block.begin, end = run.first + run.count;
        for (int64_t i = run.first; i < end; i += kGradChunk)
          add_grad_run(G(call, at + i), dz.at(at, i), std::min(kGradChunk, end - i), here, dz.direct(),
                       call.flow.first, sum[c], dot[c]);
      }
      dz.flush(at, n);
    });
  };
  for (int64_t image = block.first; image < block.last; ++image)
    add((image * channels + block.begin) * pixels, (image * channels + block.end) * pixels);
}

template <int kRows, class G, class S = G::S>
ONEPASS_INLINE void add_grad_pixels(const G gated, S* dz, int64_t apart, int64_t n, bool past, bool ahead,
                                    const Coefficients<S, Each>& table, Arithmetic<S>* s, Arithmetic<S>* d) {
  constexpr int kPair = 2;  // vectors, which makes a line or, of halves, a vector of memory
  const int64_t whole = n / kLine<S> * kLine<S>;
  const auto add = [&](auto lanes, int64_t i, int64_t at, Vector<S> mean, Vector<S>& sum,
                       Vector<S>& dot) ONEPASS_FLAT {
    const Vector<S> g =
        gated(at, lanes, lanes.load(gated.x + at), mean, table.scale(i, lanes), table.shift(i, lanes));
    add_grad(lanes.fresh(g), lanes.load(gated.x + at, mean), mean, sum, dot);
    return g;
  };
  for (int64_t i = 0; i < whole; i += kPair * kLanes<S>) {
    Vector<S> mean[kPair], sum[kPair], dot[kPair];
    each<kPair>([&](auto k) ONEPASS_FLAT {
      mean[k] = table.mean(i + k * kLanes<S>, Whole<S>{});
      sum[k] = load_wide<S>(s + i + k * kLanes<S>);
      dot[k] = load_wide<S>(d + i + k * kLanes<S>);
    });
    each<kRows>([&](auto r) ONEPASS_FLAT {
      const int64_t at = r * apart + i;
      if (ahead) {
        ask_ahead<1>(gated.x + at);
        ask_ahead<1>(gated.dy + at);
      }
      Vector<S> g[kPair];
      each<kPair>([&](auto k) ONEPASS_FLAT {
        const int64_t off = k * kLanes<S>;
        g[k] = add(InLine<S, k>{}, i + off, at + off, mean[k], sum[k], dot[k]);
      });
      if (dz) store_vectors<G::kExact>(dz + at, g, past);
    });
    each<kPair>([&](auto k) ONEPASS_FLAT {
      store_wide<S>(s + i + k * kLanes<S>, sum[k]);
      store_wide<S>(d + i + k * kLanes<S>, dot[k]);
    });
  }
  const auto rest = [&](int64_t i, auto lanes) ONEPASS_FLAT {
    Vector<S> sum = lanes.load_wide(s + i), dot = lanes.load_wide(d + i);
    for (int r = 0; r < kRows; ++r) {
      const Vector<S> g = add(lanes, i, r * apart + i, table.mean(i, lanes), sum, dot);
      if (dz) lanes.store(dz + r * apart + i, g, false);
    }
    lanes.store_wide(s + i, sum);
    lanes.store_wide(d + i, dot);
  };
  for_each_vector<S>(whole, n, rest, table.earliest(whole));
}

template <class G, class S = G::S>
void interleaved_grad_sums(const NormCall& call, const void* table, NormBlock block, Arithmetic<S>* s,
                           Arithmetic<S>* d, double* sum, double* dot) {
  const int64_t channels = call.shape.channels;
  const Coefficients<S, Each> coefficients(table, channels, 0);
  S* const dz = elements<S>(call.flow.early ? call.dresidual : nullptr, 0);
  const bool ahead = call.flow.first, past = call.flow.early_past && in_lines<S>(call, dz);
  for (int64_t c = 0; c < channels; ++c) s[c] = d[c] = 0;
  for (int64_t first = block.first; first < block.last; first += kGradChunkPixels) {
    const int64_t last = std::min(block.last, first + kGradChunkPixels);
    const auto add = [&](auto rows, int64_t p, int64_t count, int64_t apart) {
      for (const int64_t end = p + count; p < end; ++p)
        add_grad_pixels<decltype(rows)::value>(G(call, p * channels), dz ? dz + p * channels : nullptr,
                                               apart * channels, channels, past, ahead, coefficients, s, d);
    };
    for_each_strand<kGradStrands>(first, last, 1, channels * sizeof(S), add);
    for (int64_t c = 0; c < channels; ++c) {
      sum[c] += s[c];
      dot[c] += d[c];
      s[c] = d[c] = 0;
    }
  }
}

template <class G, class S = G::S>
void grad_sums_pass(const NormCall& call, const void* table, NormBlock block, double* scratch, double* sum,
                    double* dot) {
  using T = Arithmetic<S>;
  for (int64_t c = 0; c < block.end - block.begin; ++c) sum[c] = dot[c] = 0;
  if (!call.shape.channels_last) return planar_grad_sums<G>(call, table, block, sum, dot);
  T *s = reinterpret_cast<T*>(scratch), *d = reinterpret_cast<T*>(scratch + call.shape.channels);
  interleaved_grad_sums<G>(call, table, block, s, d, sum, dot);
}

// --- the gradient of x ------------------------------------------------------------------------------------
// n elements of each of kRows runs, `apart` from each other. dz: the residual's, null where it is not wanted.
// given: so were the statistics.
template <int kRows, class G, class Table, class S = G::S>
ONEPASS_INLINE void input_grad_runs(const G gated, S* dx, S* dz, int64_t apart, int64_t n, const Table& table,
                                    bool given, const Flow& flow) {
  constexpr int kVectors = kLineVectors<S>;
  const int64_t whole = n / kLine<S> * kLine<S>, step = flow.down ? -kLine<S> : kLine<S>;
  int64_t i = in_direction(flow, 0, whole - kLine<S>);
  for (int64_t lines = n / kLine<S>; lines; --lines, i += step) {
    for (int r = 0; r < kRows; ++r) {
      if (kRows == 1 && flow.next) {
        ask_next<kLine<S>>(gated.x + i, flow.next);
        ask_next<kLine<S>>(gated.dy + i, flow.next);
      }
      if (flow.second) {
        ask_ahead<kLine<S>>(gated.x + r * apart + i);
        ask_ahead<kLine<S>>(gated.dy + r * apart + i);
      }
      if (kRows == 1 && flow.results) {
        ask_ahead<kLine<S>>(dx + i);
        if (dz) ask_ahead<kLine<S>>(dz + i);
      }
      Vector<S> g[kVectors], made[kVectors];
      each<kVectors>([&](auto k) ONEPASS_FLAT {
        const int64_t c = i + k * kLanes<S>, at = r * apart + c;
        const InLine<S, k> lanes;
        const Vector<S> mean = table.mean(c, lanes), scale = table.scale(c, lanes),
                        x = lanes.load(gated.x + at);
        g[k] = gated(at, lanes, x, mean, scale, table.shift(c, lanes));
        made[k] = given ? g[k] * scale
                        : input_grad(g[k], x, mean, scale, table.slope(c, lanes), table.constant(c, lanes));
      });
      store_vectors(dx + r * apart + i, made, flow.past);
      if (dz) store_vectors<G::kExact>(dz + r * apart + i, g, flow.past);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const auto one = [&](int64_t c, auto lanes) ONEPASS_FLAT {
      const int64_t at = r * apart + c;
      const Vector<S> mean = table.mean(c, lanes), scale = table.scale(c, lanes),
                      x = lanes.load(gated.x + at);
      Vector<S> g = gated(at, lanes, x, mean, scale, table.shift(c, lanes));
      lanes.store(
          dx + at,
          given ? g * scale : input_grad(g, x, mean, scale, table.slope(c, lanes), table.constant(c, lanes)),
          flow.past);
      if (dz) lanes.store(dz + at, g, flow.past);
    };
    for_each_vector<S>(whole, n, one, table.earliest(whole));
  }
}

template <class G, class S = G::S>
void planar_grad_apply(const NormCall& call, const void* table, int64_t from, int64_t to) {
  void* dresidual = call.flow.early ? nullptr : call.dresidual;
  Stage<S> dx(call, call.dx, dresidual), dz(call, dresidual, call.dx);
  Flow flow = call.flow;
  flow.past = dx.direct();
  dx.for_each_piece(from, to, [&](int64_t at, int64_t n) {
    for (Run run(call.shape, at, n); run.count; run.next())
      input_grad_runs<1>(G(call, at + run.first), dx.at(at, run.first), dz.at(at, run.first), 0, run.count,
                         Coefficients<S, Same>(table, call.shape.channels, run.channel), call.given, flow);
    dx.flush(at, n);
    dz.flush(at, n);
  });
}

template <class G, class S = G::S>
void interleaved_grad_apply(const NormCall& call, const void* table, int64_t from, int64_t to) {
  const int64_t channels = call.shape.channels;
  const Coefficients<S, Each> coefficients(table, channels, 0);
  S* dresidual = elements<S>(call.flow.early ? nullptr : call.dresidual, 0);
  const Flow flow = flow_to<S>(call, call.dx, dresidual);
  const auto write = [&](auto rows, int64_t first, int64_t count, int64_t apart) {
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = (first + in_direction(flow, k, count - 1)) * channels;
      input_grad_runs<decltype(rows)::value>(G(call, at), elements<S>(call.dx, at),
                                             dresidual ? dresidual + at : nullptr, apart * channels, channels,
                                             coefficients, call.given, flow);
    }
  };
  for_each_strand<kGradStrands>(from / channels, to / channels, 1, channels * sizeof(S), write);
}

template <class G>
void grad_apply_pass(const NormCall& call, const void* table, int64_t from, int64_t to) {
  if (call.shape.channels_last) return interleaved_grad_apply<G>(call, table, from, to);
  planar_grad_apply<G>(call, table, from, to);
}

// --- the kernels ------------------------------------------------------------------------------------------
// body(std::type_identity<Gated>{}) with what tells of a call's gradients.
template <Activation act, class S, class Body>
void by_gate(const NormCall& call, const Body& body) {
  if constexpr (act == Activation::kRelu || act == Activation::kLeakyRelu)
    if (call.mask) {
      const int64_t run = call.shape.channels_last ? call.shape.channels : call.shape.pixels;
      if (run % std::max(8, kLanes<S>) == 0) return body(std::type_identity<Gated<act, By::kWholeBits, S>>{});
      return body(std::type_identity<Gated<act, By::kBits, S>>{});
    }
  if (call.residual) return body(std::type_identity<Gated<act, By::kInputAndResidual, S>>{});
  body(std::type_identity<Gated<act, By::kInput, S>>{});
}

template <Activation act, class S>
void grad_sums(const NormCall& call, const void* table, NormBlock block, double* scratch, double* sum,
               double* dot) {
  by_gate<act, S>(call, [&](auto gated) {
    grad_sums_pass<typename decltype(gated)::type>(call, table, block, scratch, sum, dot);
  });
}

template <Activation act, class S>
void grad_apply(const NormCall& call, const void* table, int64_t from, int64_t to) {
  by_gate<act, S>(
      call, [&](auto gated) { grad_apply_pass<typename decltype(gated)::type>(call, table, from, to); });
}

}  // namespace onepass::ONEPASS_ISA
