// Columns of g in 8 bits, on CUDA: a block for 32 of them side by side, a cache line of float32.
//
// Memory contract. g is read twice, the second time from a cache where it fits one, 16 bytes at a time, 64
// rows at once; in between they are floats in shared memory, of which a thread takes eight of a column. A
// byte an element is written, a scale a column, and where they are wanted the starts. Rows of g that do not
// consist of 16-byte pieces are read number by number.
#pragma once
#include "int8_backward_lines.cuh"

namespace onepass::cuda {

constexpr int kAcross = 32, kDeep = 64;
constexpr int kWarps = kQuantThreads / 32;
static_assert(kAcross * kDeep == kGroup * kQuantThreads);

// Where a number stands in shared memory. Eight rows are eight words more apart, so that the four eights of
// eight columns that a warp takes lie in different banks.
__device__ __forceinline__ constexpr int staged_at(int row, int column) {
  return row * kAcross + row / 8 * 8 + column;
}

// What a thread reads of 64 rows: pieces of its columns.
template <class S>
struct Pieces {
  static constexpr int kWide = kPerVector<S>, kLanes = kAcross / kWide;  // columns; lanes for all of them
  static constexpr int kRows = kQuantThreads / kLanes, kCount = kDeep / kRows;
  S v[kCount][kWide];
  float factors[kCount];

  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kLanes; }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kLanes * kWide; }

  // Rows d ... d + 63, zero where there are none. n: columns that there are.
  __device__ __forceinline__ void load(const ReadyInt8Work& w, int64_t d, int64_t first, int n) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t at = d + row() + i * kRows;
      const S* const from = static_cast<const S*>(w.g) + at * w.lines + first + column();
      const bool there = at < w.depth && column() < n;
      factors[i] = there && w.factors ? w.factors[at] : 1;
#pragma unroll
      for (int k = 0; k < kWide; ++k) v[i][k] = S{};
      if (there && w.g_aligned) {
        load_vectors(v[i], from);
      } else if (there) {
#pragma unroll
        for (int k = 0; k < kWide; ++k)
          if (column() + k < n) v[i][k] = from[k];
      }
    }
  }
  __device__ __forceinline__ float value(int i, int k) const { return cuda::load(v[i][k]) * factors[i]; }

  __device__ __forceinline__ void put(float* staged) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
#pragma unroll
      for (int k = 0; k < kWide; k += 4)
        *reinterpret_cast<float4*>(staged + staged_at(row() + i * kRows, column() + k)) =
            float4{value(i, k), value(i, k + 1), value(i, k + 2), value(i, k + 3)};
  }
};

// How far each of a thread's columns reaches, then of all threads together. Called by the block.
template <class S>
__device__ __forceinline__ Reach reach_of_column(const ReadyInt8Work& w, int64_t first, int n, int column) {
  using P = Pieces<S>;
  Reach mine[P::kWide];
  P next;
  next.load(w, 0, first, n);
#pragma unroll 1
  for (int64_t d = 0; d < w.depth; d += kDeep) {
    const P now = next;
    next.load(w, d + kDeep, first, n);
#pragma unroll
    for (int i = 0; i < P::kCount; ++i)
#pragma unroll
      for (int k = 0; k < P::kWide; ++k) mine[k].merge(now.value(i, k));
  }
  __shared__ Reach of_warps[kWarps][kAcross];
#pragma unroll
  for (int k = 0; k < P::kWide; ++k) {
#pragma unroll
    for (int bit = 16; bit >= P::kLanes; bit /= 2)
      mine[k].merge(Reach{__shfl_xor_sync(kAllLanes, mine[k].bits, bit)});
    if (threadIdx.x % 32 < P::kLanes) of_warps[threadIdx.x / 32][P::column() + k] = mine[k];
  }
  __syncthreads();
  Reach all;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) all.merge(of_warps[i][column]);
  return all;
}

// The sum of q times what it is multiplied by lacks, of eight from d on; q is zero behind the depth.
__device__ __forceinline__ int64_t lack_of(const ReadyInt8Work& w, int64_t d, const int (&q)[kGroup]) {
  int sum = 0;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) sum += q[k];
  int64_t lack = w.right_is_signed ? 0 : 128 * sum;
  if (!w.zero) return lack;
#pragma unroll
  for (int k = 0; k < kGroup; ++k)
    if (d + k < w.depth) lack -= static_cast<int64_t>(q[k]) * w.zero[d + k];
  return lack;
}

// The sum of what eight threads of two warps have, which share a column; the first of them keeps it.
__device__ __forceinline__ void keep_start(const ReadyInt8Work& w, int64_t mine, int64_t first, int n,
                                           int column, int eight) {
  __shared__ int64_t of_others[kAcross];
#pragma unroll
  for (int bit = 8; bit < 32; bit *= 2) mine += __shfl_xor_sync(kAllLanes, mine, bit);
  if (eight == 4) of_others[column] = mine;
  __syncthreads();
  if (eight == 0 && column < n) w.starts[first + column] = mine + of_others[column];
}

// Columns 32 * block and behind. A thread's numbers are rows 8 * eight ... 8 * eight + 7 of each 64 of its
// column, so that four lanes of a warp, side by side, store a sector of q.
template <class S>
__device__ __forceinline__ void quantize_columns(const ReadyInt8Work& w, unsigned block) {
  __shared__ __align__(16) float staged[2][staged_at(kDeep, 0)];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int column = warp % 4 * 8 + lane % 8, eight = warp / 4 * 4 + lane / 8;
  const int64_t first = static_cast<int64_t>(block) * kAcross, line = first + column;
  const int n = w.lines - first < kAcross ? static_cast<int>(w.lines - first) : kAcross;
  const Grid grid = reach_of_column<S>(w, first, n, column).grid();
  if (eight == 0 && column < n) w.scales[line] = grid.scale;

  int64_t start = 0;
  Pieces<S> next;
  next.load(w, 0, first, n);
  int which = 0;
#pragma unroll 1
  for (int64_t d = 0; d < w.width; d += kDeep, which ^= 1) {  // in two places: none waits for who still reads
    next.put(staged[which]);
    next.load(w, d + kDeep, first, n);
    __syncthreads();
    const int64_t at = d + kGroup * eight;
    if (column >= n || at >= w.width) continue;
    float v[kGroup];
    int q[kGroup];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) v[k] = staged[which][staged_at(kGroup * eight + k, column)];
    on_bytes(q, w, v, grid.inverse, line * w.depth + at);
    store_turn(w, line, at, q);
    if (w.starts) start += lack_of(w, at, q);
  }
  if (w.starts) keep_start(w, start, first, n, column, eight);
}

}  // namespace onepass::cuda
