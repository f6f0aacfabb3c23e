// Room 2, memory on the CPU: the driver that walks any list of tensors under any optimizer rule.
//
// Memory contract. Each stream (parameter, gradient, states, average of weights) is read once and, but for
// the gradient, written once; the gradient is written where the step leaves zeros or its clipped values in
// it. Streams of float32, float64 and bfloat16 that lie alike are worked on in place; bfloat16 is widened and
// rounded in registers, beside the divisions that the loop waits for. Others (float16, strided or differently
// laid out) pass through tiles of kTile elements on the stack, so that the arithmetic exists in one loop for
// all of them. What only some steps do (the average, the gradient's new values) is a loop of its own over
// the same tile, which is in the first-level cache by then. Nothing is allocated.
#pragma once
#include "../rules/step.h"
#include "strands.h"
#include "window.h"

namespace onepass::ONEPASS_ISA {

// The arithmetic: n elements, every stream contiguous: parameter of type P, gradient of type G, states of
// type S. The step is taken by value: its coefficients then stay in registers, whatever the stores may alias.
template <bool kL1, class Step, class P, class G, class S>
inline __attribute__((always_inline)) void update_all(const Step step, int64_t n, P* __restrict p,
                                                      const G* __restrict g, S* const* state) {
  using T = typename Step::T;
  constexpr int kStates = Step::kStates;
  S* __restrict s0 = kStates > 0 ? state[0] : nullptr;
  S* __restrict s1 = kStates > 1 ? state[1] : nullptr;
  S* __restrict s2 = kStates > 2 ? state[2] : nullptr;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    T param, grad, a = T(0), b = T(0), c = T(0);
    load(param, p[i]);
    load(grad, g[i]);
    if constexpr (kStates > 0) load(a, s0[i]);
    if constexpr (kStates > 1) load(b, s1[i]);
    if constexpr (kStates > 2) load(c, s2[i]);
    step.template apply<kL1>(grad, param, a, b, c);
    store(p[i], param);
    if constexpr (kStates > 0) store(s0[i], a);
    if constexpr (kStates > 1) store(s1[i], b);
    if constexpr (kStates > 2) store(s2[i], c);
  }
}

// Vectors of 256 bits serve memory better than those of 512 (docs/measured-facts.md): the AVX-512 build keeps
// to them, but for loops that arithmetic bounds, which are those that round to bfloat16.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define ONEPASS_WIDE_VECTORS __attribute__((noinline, target("prefer-vector-width=512")))
#else
#define ONEPASS_WIDE_VECTORS
#endif

template <bool kL1, class Step, class P, class G, class S>
void update(const Step step, int64_t n, P* __restrict p, const G* __restrict g, S* const* state) {
  update_all<kL1>(step, n, p, g, state);
}
template <bool kL1, class Step, class P, class G, class S>
ONEPASS_WIDE_VECTORS void update_rounding(const Step step, int64_t n, P* __restrict p, const G* __restrict g,
                                          S* const* state) {
  update_all<kL1>(step, n, p, g, state);
}

template <class Step, class T = typename Step::T>
void average(const Step step, int64_t n, const T* __restrict p, T* __restrict ema) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) ema[i] = step.average(ema[i], p[i]);
}

// What the step leaves in the gradient.
template <class Step, class T = typename Step::T>
void leave(const Step step, GradsAfter after, int64_t n, T* g) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) g[i] = after == GradsAfter::kZeroed ? T(0) : step.clipped(g[i]);
}

// The plain step, without L1, on streams that need no tile: one loop over the whole row.
template <class P, class G, class S, class Step>
bool update_in_place(const Step& step, const Row& row, const Launch& launch, int64_t from, int64_t to) {
  bool plain = !row.box && !launch.ema && launch.grads_after == GradsAfter::kKept && step.l1 == 0;
  plain &= is_stored<P>(row.dtype[kParam]) && is_stored<G>(row.dtype[kGrad]);
  for (int s = 0; s < Step::kStates; ++s) plain &= is_stored<S>(row.dtype[kState + s]);
  if (!plain) return false;
  S* state[kMaxStates] = {};
  for (int s = 0; s < Step::kStates; ++s) state[s] = static_cast<S*>(row.data[kState + s]) + from;
  P* const p = static_cast<P*>(row.data[kParam]) + from;
  const G* const g = static_cast<const G*>(row.data[kGrad]) + from;
  if constexpr (sizeof(P) == 2 || sizeof(S) == 2)
    update_rounding<false>(step, to - from, p, g, state);
  else
    update<false>(step, to - from, p, g, state);
  return true;
}

// Elements [from, to) of one row.
template <class Step>
void update_row(const Step& step, const Row& row, const Launch& launch, int64_t from, int64_t to) {
  using T = typename Step::T;
  if (update_in_place<T, T, T>(step, row, launch, from, to)) return;
  if constexpr (sizeof(T) == 4) {
    if (update_in_place<BFloat16, BFloat16, T>(step, row, launch, from, to)) return;
    if (update_in_place<BFloat16, BFloat16, BFloat16>(step, row, launch, from, to)) return;
    if (update_in_place<T, T, BFloat16>(step, row, launch, from, to)) return;
    if (update_in_place<BFloat16, T, T>(step, row, launch, from, to)) return;  // summed in float32
  }
  Window<T> p{row, kParam}, g{row, kGrad}, s0{row, kState}, s1{row, kState + 1}, s2{row, kState + 2};
  Window<T> ema{row, kState + Step::kStates};
  Window<T>* states[] = {&s0, &s1, &s2};
  T* state[kMaxStates] = {};
  for (int64_t i = from; i < to; i += kTile) {
    const int64_t n = to - i < kTile ? to - i : kTile;
    for (int s = 0; s < Step::kStates; ++s) state[s] = states[s]->load(i, n);
    T *param = p.load(i, n), *grad = g.load(i, n);
    update<true>(step, n, param, grad, state);
    if (launch.ema) {
      average(step, n, param, ema.load(i, n));
      ema.store(i, n);
    }
    if (launch.grads_after != GradsAfter::kKept) {
      leave(step, launch.grads_after, n, grad);
      g.store(i, n);
    }
    p.store(i, n);
    for (int s = 0; s < Step::kStates; ++s) states[s]->store(i, n);
  }
}

// Coefficients cost two pow() each: made again only where the group or the step number changes.
template <class Step>
class Coefficients {
 public:
  const Step& at(const Launch& launch, const Scaling& scaling, const Row& row) {
    if (row.group != group_ || row.t != t_) {
      group_ = row.group;
      t_ = row.t;
      const double* hyper = launch.hyper + row.group * launch.hyper_columns;
      step_ = Step::make(*reinterpret_cast<const typename Step::Hyper*>(hyper), row.t, scaling);
    }
    return step_;
  }

 private:
  int32_t group_ = -1;
  double t_ = 0;
  Step step_;
};

inline void advance(const Row& row) {
  if (!row.step) return;
  if (row.step_dtype == DType::kFloat64)
    *static_cast<double*>(row.step) = row.t;
  else
    *static_cast<float*>(row.step) = static_cast<float>(row.t);
}

inline Scaling scaling_of(const Launch& launch) {
  Scaling scaling;
  if (launch.grad_scale) scaling.inv_scale = 1.0 / *launch.grad_scale;
  if (launch.stats) scaling.norm = launch.stats[0];
  return scaling;
}

// How many strands to walk in turn. Two pay up to four streams each, of which three are written; with more,
// lines are driven out of the caches before they are used, and the step may take twice as long. float16
// passes through tiles: arithmetic then, not memory, is what takes its time.
inline int strands_of(const Launch& launch, int states) {
  const bool few = states <= 2 && !launch.ema && launch.grads_after == GradsAfter::kKept;
  const bool tiles = !launch.rows.empty() && launch.rows.front().dtype[kParam] == DType::kFloat16;
  return few && !tiles ? 2 : 1;
}

// The piece [from, to) of a launch. Rule<T> is instantiated for both arithmetic types; a row says which it
// wants. A row's step counter is advanced by the piece that holds its start.
template <template <class> class Rule>
void multi_tensor(const Launch& launch, Cut from, Cut to) {
  Coefficients<Step<Rule<float>>> single[kMaxStrands];
  Coefficients<Step<Rule<double>>> twice[kMaxStrands];
  const Scaling scaling = scaling_of(launch);
  const int strands = strands_of(launch, Rule<float>::kStates);
  for_each_block(launch, from, to, strands, [&](int k, const Row& row, int64_t first, int64_t last) {
    if (row.dtype[kParam] == DType::kFloat64)
      update_row(twice[k].at(launch, scaling, row), row, launch, first, last);
    else
      update_row(single[k].at(launch, scaling, row), row, launch, first, last);
    if (first == 0) advance(row);
  });
}

}  // namespace onepass::ONEPASS_ISA
