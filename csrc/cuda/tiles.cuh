// Which elements a block works on: what every kernel over a list of tensors shares.
#pragma once
#include "vector.cuh"

namespace onepass::cuda {

// Blocks are small because some kernels take close to 100 registers a thread: five of 128 threads fit then,
// and only two of 256. The bound is on registers (128), so that the compiler does not spill to fit more
// blocks.
constexpr int kThreads = 128, kMinBlocks = 4;

template <class Work>
__device__ __forceinline__ void* grad_of(const Work& work, int row) {
  return work.grads ? work.grads[row] : work.grad[row];
}

// The last row that starts at or before a tile: of rows without elements, which start where the next one
// does, never one. `low` is known to start there, `high` behind the tile.
template <class Row>
__device__ __forceinline__ int find_row(const Row* rows, int low, int high, int64_t tile) {
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (rows[middle].first_tile <= tile)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The same for a tile behind, or before, one that was in `row`: mostly the row is the same.
template <class Work>
__device__ __forceinline__ int row_behind(const Work& work, int row, int64_t tile) {
  const int next = row + 1;
  if (next == work.count || work.rows[next].first_tile > tile) return row;
  return find_row(work.rows, next, work.count, tile);
}
template <class Work>
__device__ __forceinline__ int row_before(const Work& work, int row, int64_t tile) {
  return work.rows[row].first_tile <= tile ? row : find_row(work.rows, 0, row, tile);
}

// Where element i of a box lies in its first `count` streams; the others are left alone. box: as image.h has
// it.
template <int kMost>
__device__ __forceinline__ void offsets_in(const int64_t* box, int64_t i, int count, int64_t (&at)[kMost]) {
  const int dims = static_cast<int>(box[0]);
  const int64_t *sizes = box + 1, *strides = sizes + dims;
#pragma unroll
  for (int s = 0; s < kMost; ++s) at[s] = 0;
#pragma unroll 1
  for (int d = dims - 1; d >= 0; --d) {
    const int64_t rest = d ? i / sizes[d] : 0, place = i - rest * sizes[d];
#pragma unroll
    for (int s = 0; s < kMost; ++s)
      if (s < count) at[s] += place * strides[s * dims + d];
    i = rest;
  }
}

// Where it lies in the gradient; box: null where all streams are one run.
__device__ __forceinline__ int64_t offset_of_grad(const int64_t* box, int64_t i) {
  int64_t at[kGrad + 1];
  if (!box) return i;
  offsets_in(box, i, kGrad + 1, at);
  return at[kGrad];
}

// Elements [from, to) of a row, those in [first, end) by vectors, the rest one a thread.
struct Span {
  int64_t from, first, end, to;

  // first: where the first vector starts, at most to. Without vectors, it is `to`.
  static __device__ __forceinline__ Span make(int64_t from, int64_t first, int64_t to, int in_vector) {
    return {from, first, first + (to - first) / in_vector * in_vector, to};
  }

  // Calls body(i) for this thread's elements outside the vectors. One copy of the code for both ends.
  template <class Body>
  __device__ __forceinline__ void each_element(const Body& body) const {
#pragma unroll 1
    for (int part = 0; part < 2; ++part)
      for (int64_t i = (part ? end : from) + threadIdx.x; i < (part ? to : first); i += kThreads) body(i);
  }
};

// Is this the last of so many blocks to come here? To it everything is visible that the others wrote before.
// Called by all threads of a block, once; whoever is last sets blocks_done back.
__device__ __forceinline__ bool is_last_block(unsigned* blocks_done, unsigned blocks) {
  __shared__ bool last;
  __syncthreads();  // the block's own reads and writes are done
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(blocks_done, 1u) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace onepass::cuda
