// Room 2, memory on the CPU: the driver that walks any list of tensors under any optimizer rule.
//
// Memory contract. Each stream (parameter, gradient, states) is read once and, but for the gradient, written
// once. Streams in the arithmetic type that lie alike are worked on in place. Others (half storage, strided
// or differently laid out) pass through tiles of kTile elements on the stack, so that the arithmetic exists
// in one loop for all of them. Nothing is allocated.
#pragma once
#include "../rules/step.h"
#include "convert.h"
#include "isa.h"

namespace onepass::ONEPASS_ISA {

constexpr int64_t kTile = 256;

// The arithmetic: n elements, every stream contiguous in T. The step is taken by value: its coefficients then
// stay in registers, whatever the stores may alias.
template <class Step, class T = typename Step::T>
void update(const Step step, int64_t n, T* __restrict p, const T* __restrict g, T* const* state) {
  constexpr int kStates = Step::kStates;
  T* __restrict s0 = kStates > 0 ? state[0] : nullptr;
  T* __restrict s1 = kStates > 1 ? state[1] : nullptr;
  T* __restrict s2 = kStates > 2 ? state[2] : nullptr;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    T param = p[i], a = T(0), b = T(0), c = T(0);
    if constexpr (kStates > 0) a = s0[i];
    if constexpr (kStates > 1) b = s1[i];
    if constexpr (kStates > 2) c = s2[i];
    step(g[i], param, a, b, c);
    p[i] = param;
    if constexpr (kStates > 0) s0[i] = a;
    if constexpr (kStates > 1) s1[i] = b;
    if constexpr (kStates > 2) s2[i] = c;
  }
}

// Calls body(memory offset, stride, elements done before, count) for each run of one stream along
// the innermost dimension of the box, from element `start` on, `n` elements in all.
template <class Body>
inline void for_each_run(const Layout& box, int stream, int64_t start, int64_t n, const Body& body) {
  const int64_t *sizes = box.sizes.data(), *strides = box.strides[stream].data();
  const int inner = static_cast<int>(box.sizes.size()) - 1;
  for (int64_t done = 0; done < n;) {
    int64_t rest = start + done;
    const int64_t at = rest % sizes[inner];
    int64_t offset = at * strides[inner];
    rest /= sizes[inner];
    for (int d = inner - 1; d >= 0; --d) {
      offset += rest % sizes[d] * strides[d];
      rest /= sizes[d];
    }
    const int64_t left = n - done, run = sizes[inner] - at;
    const int64_t count = run < left ? run : left;
    body(offset, strides[inner], done, count);
    done += count;
  }
}

template <class S, class T>
inline void load_tile(T* to, const Row& row, int stream, int64_t start, int64_t n) {
  const S* from = static_cast<const S*>(row.data[stream]);
  if (!row.box) return load_run(to, from + start, 1, n);
  for_each_run(*row.box, stream, start, n, [&](int64_t offset, int64_t stride, int64_t done, int64_t count) {
    load_run(to + done, from + offset, stride, count);
  });
}

template <class S, class T>
inline void store_tile(const T* from, const Row& row, int stream, int64_t start, int64_t n) {
  S* to = static_cast<S*>(row.data[stream]);
  if (!row.box) return store_run(to + start, from, 1, n);
  for_each_run(*row.box, stream, start, n, [&](int64_t offset, int64_t stride, int64_t done, int64_t count) {
    store_run(to + offset, from + done, stride, count);
  });
}

// One stream of a row as T*: the memory itself where it can be, else a tile to load and store.
template <class T>
struct Window {
  const Row& row;
  const int stream;
  T tile[kTile];

  Window(const Row& row, int stream) : row(row), stream(stream) {}  // leaves the tile as it is: it costs

  bool in_place() const { return !row.box && size_of(row.dtype[stream]) == sizeof(T); }
  T* load(int64_t start, int64_t n) {
    if (in_place()) return static_cast<T*>(row.data[stream]) + start;
    switch (row.dtype[stream]) {
      case DType::kBFloat16:
        if constexpr (sizeof(T) == 4) load_tile<BFloat16>(tile, row, stream, start, n);
        break;
      case DType::kFloat16:
        if constexpr (sizeof(T) == 4) load_tile<Float16>(tile, row, stream, start, n);
        break;
      default:
        load_tile<T>(tile, row, stream, start, n);
    }
    return tile;
  }
  void store(int64_t start, int64_t n) {
    if (in_place()) return;
    switch (row.dtype[stream]) {
      case DType::kBFloat16:
        if constexpr (sizeof(T) == 4) store_tile<BFloat16>(tile, row, stream, start, n);
        break;
      case DType::kFloat16:
        if constexpr (sizeof(T) == 4) store_tile<Float16>(tile, row, stream, start, n);
        break;
      default:
        store_tile<T>(tile, row, stream, start, n);
    }
  }
};

// Elements [from, to) of one row.
template <class Step>
void update_row(const Step& step, const Row& row, int64_t from, int64_t to) {
  using T = typename Step::T;
  Window<T> p{row, kParam}, g{row, kGrad}, s0{row, kState}, s1{row, kState + 1}, s2{row, kState + 2};
  Window<T>* states[] = {&s0, &s1, &s2};
  bool in_place = p.in_place() && g.in_place();
  for (int s = 0; s < Step::kStates; ++s) in_place = in_place && states[s]->in_place();

  const int64_t tile = in_place ? to - from : kTile;
  for (int64_t i = from; i < to; i += tile) {
    const int64_t n = to - i < tile ? to - i : tile;
    T* state[kMaxStates] = {};
    for (int s = 0; s < Step::kStates; ++s) state[s] = states[s]->load(i, n);
    update(step, n, p.load(i, n), g.load(i, n), state);
    p.store(i, n);
    for (int s = 0; s < Step::kStates; ++s) states[s]->store(i, n);
  }
}

// Coefficients cost two pow() each: made again only where the group or the step number changes.
template <class Step>
class Coefficients {
 public:
  const Step& at(const Launch& launch, const Row& row) {
    if (row.group != group_ || row.t != t_) {
      group_ = row.group;
      t_ = row.t;
      const double* hyper = launch.hyper + row.group * launch.hyper_columns;
      step_ = Step::make(*reinterpret_cast<const typename Step::Hyper*>(hyper), row.t, launch.inv_scale);
    }
    return step_;
  }

 private:
  int32_t group_ = -1;
  double t_ = 0;
  Step step_;
};

// The start of each stream of the next row, while this one is computed. The processor's own prefetcher needs
// a few lines to see a stream: of small tensors it sees too little too late.
inline void prefetch(const Row& row) {
  constexpr int64_t kLine = 64, kBytes = 2048;
  for (int s = 0; s < kMaxStreams; ++s) {
    const char* data = static_cast<const char*>(row.data[s]);
    const int64_t bytes = row.numel * size_of(row.dtype[s]);
    for (int64_t at = 0; data && at < bytes && at < kBytes; at += kLine)
      __builtin_prefetch(data + at, s != kGrad);
  }
}

// The piece [from, to) of a launch. Rule<T> is instantiated for both arithmetic types; a row says which it
// wants.
template <template <class> class Rule>
void multi_tensor(const Launch& launch, Cut from, Cut to) {
  Coefficients<Step<Rule<float>>> single;
  Coefficients<Step<Rule<double>>> twice;
  const int64_t rows = static_cast<int64_t>(launch.rows.size());
  for (int64_t r = from.row; r < rows && r <= to.row; ++r) {
    const Row& row = launch.rows[r];
    const int64_t first = r == from.row ? from.offset : 0;
    const int64_t last = r == to.row ? to.offset : row.numel;
    if (r < to.row && r + 1 < rows) prefetch(launch.rows[r + 1]);
    if (first >= last) continue;
    if (row.dtype[kParam] == DType::kFloat64)
      update_row(twice.at(launch, row), row, first, last);
    else
      update_row(single.at(launch, row), row, first, last);
  }
}

}  // namespace onepass::ONEPASS_ISA
