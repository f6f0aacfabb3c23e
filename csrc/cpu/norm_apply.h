// Room 2, memory on the CPU: the forward pass of a normalization whose statistics are known.
//
// Memory contract: x, and residual where there is one, are read once, y is written once, and a bit of the
// mask for each element where one is kept.
#pragma once
#include "norm_memory.h"

namespace onepass::ONEPASS_ISA {

// Where channels are innermost: as many as have their results in registers at once.
#if defined(__AVX512F__)
template <class S>
constexpr int kApplyStrands = 2;  // four have not been measured there
#else
template <class S>
constexpr int kApplyStrands = 8 / kLineVectors<S>;
#endif

// residual: added before the activation. bits: kept of what passes it.
template <Activation act, bool residual, bool bits, class S>
struct Forward {
  const S *x, *z;
  Arithmetic<S> negative_slope;

  Forward(const NormCall& call, int64_t at)
      : x(elements<S>(call.x, at)),
        z(elements<S>(call.residual, at)),
        negative_slope(static_cast<Arithmetic<S>>(call.negative_slope)) {}

  static constexpr bool adds = residual, keeps_bits = bits;

  // Of the lanes i, i + 1 ...; passed: all ones in those that do, where bits are kept.
  template <class Lanes>
  ONEPASS_INLINE Vector<S> operator()(int64_t i, Lanes lanes, Vector<S> mean, Vector<S> scale,
                                      Vector<S> shift, Integers<S>& passed) const {
    Vector<S> v = normalise(lanes.load(x + i), mean, scale, shift);
    if constexpr (residual) v += lanes.load(z + i);
    if constexpr (bits) passed = passes<act>(v);
    return activate<act>(v, negative_slope);
  }
};

// n elements of each of kRows runs, `apart` from each other. Of a line everything is read before the first
// result is stored, which else a load might have to wait for.
template <int kRows, class S, class Pass, class Table>
ONEPASS_INLINE void apply_runs(const Pass forward, S* y, int64_t apart, int64_t n, const Table& table,
                               const Flow& flow, BitWriter* mask) {
  constexpr int kVectors = kLineVectors<S>;
  const int64_t whole = n / kLine<S> * kLine<S>, step = flow.down ? -kLine<S> : kLine<S>;
  int64_t i = in_direction(flow, 0, whole - kLine<S>);
  for (int64_t lines = n / kLine<S>; lines; --lines, i += step) {
    Vector<S> mean[kVectors], scale[kVectors], shift[kVectors];
    each<kVectors>([&](auto k) ONEPASS_FLAT {
      mean[k] = table.mean(i + k * kLanes<S>, Whole<S>{});
      scale[k] = table.scale(i + k * kLanes<S>, Whole<S>{});
      shift[k] = table.shift(i + k * kLanes<S>, Whole<S>{});
    });
    Vector<S> made[kRows][kVectors];
    unsigned bits[kRows];
    each<kRows>([&](auto r) ONEPASS_FLAT {
      if (kRows == 1 && flow.next) ask_next<kLine<S>>(forward.x + i, flow.next);
      if (flow.second) ask_ahead<kLine<S>>(forward.x + r * apart + i);
      if (Pass::adds && flow.residual) ask_ahead<kLine<S>>(forward.z + r * apart + i);
      if (kRows == 1 && flow.results) ask_ahead<kLine<S>>(y + i);
      Integers<S> passed[kVectors];
      each<kVectors>([&](auto k) ONEPASS_FLAT {
        made[r][k] =
            forward(r * apart + i + k * kLanes<S>, InLine<S, k>{}, mean[k], scale[k], shift[k], passed[k]);
      });
      if constexpr (Pass::keeps_bits) bits[r] = bits_of_line<S>(passed);
    });
    each<kRows>([&](auto r) ONEPASS_FLAT {
      store_vectors(y + r * apart + i, made[r], flow.past);
      if constexpr (Pass::keeps_bits) mask[r].template put<kLine<S>>(bits[r], flow.down);
    });
  }
  for (int r = 0; r < kRows; ++r) {
    const auto one = [&](int64_t k, auto lanes) ONEPASS_FLAT {
      const int64_t at = r * apart + k;
      Integers<S> passed;
      lanes.store(
          y + at,
          forward(at, lanes, table.mean(k, lanes), table.scale(k, lanes), table.shift(k, lanes), passed),
          flow.past);
      if constexpr (Pass::keeps_bits) mask[r].put(lanes.fresh(bits_of<S>(passed)), lanes.n);
    };
    for_each_vector<S>(whole, n, one, table.earliest(whole));
  }
}

template <class S, class Pass>
void planar_apply(const NormCall& call, const void* table, int64_t from, int64_t to) {
  Stage<S> y(call, call.y);
  Flow flow = call.flow;
  flow.past = y.direct();
  BitWriter mask;
  if (call.mask) mask.begin(call.mask + from / 8);
  y.for_each_piece(from, to, [&](int64_t at, int64_t n) {
    for (Run run(call.shape, at, n); run.count; run.next())
      apply_runs<1>(Pass(call, at + run.first), y.at(at, run.first), 0, run.count,
                    Coefficients<S, Same>(table, call.shape.channels, run.channel), flow, &mask);
    y.flush(at, n);
  });
}

template <class S, class Pass>
void interleaved_apply(const NormCall& call, const void* table, int64_t from, int64_t to) {
  const int64_t channels = call.shape.channels;
  const Coefficients<S, Each> coefficients(table, channels, 0);
  const Flow flow = flow_to<S>(call, call.y);
  for_each_strand<kApplyStrands<S>>(
      from / channels, to / channels, channels % 8 ? 8 : 1, channels * sizeof(S),
      [&](auto rows, int64_t first, int64_t count, int64_t apart) {
        constexpr int kRows = decltype(rows)::value;
        const int64_t n = count * channels;
        BitWriter mask[kRows];
        for (int r = 0; call.mask && r < kRows; ++r)
          mask[r].begin(call.mask +
                        ((first + r * apart) * channels + in_direction(flow, 0, n - kLine<S>)) / 8);
        for (int64_t k = 0; k < n; k += channels) {
          const int64_t at = first * channels + in_direction(flow, k, n - channels);
          apply_runs<kRows>(Pass(call, at), elements<S>(call.y, at), apart * channels, channels, coefficients,
                            flow, mask);
        }
      });
}

template <class S, class Pass>
void apply_pass(const NormCall& call, const void* table, int64_t from, int64_t to) {
  if (call.shape.channels_last) return interleaved_apply<S, Pass>(call, table, from, to);
  planar_apply<S, Pass>(call, table, from, to);
}

template <Activation act, class S>
void apply(const NormCall& call, const void* table, int64_t from, int64_t to) {
  if (call.mask) return apply_pass<S, Forward<act, true, true, S>>(call, table, from, to);
  if (call.residual) return apply_pass<S, Forward<act, true, false, S>>(call, table, from, to);
  apply_pass<S, Forward<act, false, false, S>>(call, table, from, to);
}

}  // namespace onepass::ONEPASS_ISA
