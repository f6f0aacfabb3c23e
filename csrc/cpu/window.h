// One stream of a row as an array of the arithmetic type: the memory itself where it can be, else a tile on
// the stack that is loaded from it and stored back. This is where storage types and layouts end.
#pragma once
#include "../common/plan.h"
#include "convert.h"

namespace onepass::ONEPASS_ISA {

constexpr int64_t kTile = 256;  // elements: five float tiles are 5 KB, a sixth of the smallest L1

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

template <class S>
constexpr DType kDTypeOf = DType::kOther;
template <>
inline constexpr DType kDTypeOf<float> = DType::kFloat32;
template <>
inline constexpr DType kDTypeOf<double> = DType::kFloat64;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBFloat16;

// Is S what a stream of this dtype holds?
template <class S>
constexpr bool is_stored(DType dtype) {
  return dtype == kDTypeOf<S>;
}

template <class T>
struct Window {
  const Row& row;
  const int stream;
  T tile[kTile];

  Window(const Row& row, int stream) : row(row), stream(stream) {}  // leaves the tile as it is

  bool in_place() const { return !row.box && is_stored<T>(row.dtype[stream]); }
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

}  // namespace onepass::ONEPASS_ISA
