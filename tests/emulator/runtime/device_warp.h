// Warp operations.
#pragma once
#include "core.h"

namespace emulator {

template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, bool inside, Where where) {
  const int from = inside ? source : here.lane;  // outside its segment a lane keeps its own value
  T result = value;
  WarpCall call{WarpCall::kShuffle, what, mask, where, &value, &result, sizeof(T), from};
  warp_call(call);
  return result;
}

// The contributions of all 32 lanes; zero for those not in the mask.
template <class T>
struct Gathered {
  T lane[kWarp];
};
template <class T>
Gathered<T> gather(const char* what, unsigned mask, T value, Where where) {
  Gathered<T> all{};
  WarpCall call{WarpCall::kGather, what, mask, where, &value, &all, sizeof(T)};
  warp_call(call);
  return all;
}

template <class T, class Combine>
T reduce(const char* what, unsigned mask, T value, Combine combine, Where where) {
  const Gathered<T> all = gather(what, mask, value, where);
  T result = value;
  for (int i = 0; i < kWarp; ++i)
    if (mask >> i & 1 && i != here.lane) result = combine(result, all.lane[i]);
  return result;
}

inline int segment(int width) { return here.lane & ~(width - 1); }  // where a lane's segment starts

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_WHERE) {
  emulator::WarpCall call{emulator::WarpCall::kSync, "__syncwarp", mask, where};
  emulator::warp_call(call);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = emulator::kWarp, EMULATOR_WHERE) {
  const int from = emulator::segment(width) + (source & (width - 1));
  return emulator::shuffle("__shfl_sync", mask, value, from, true, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = emulator::kWarp, EMULATOR_WHERE) {
  const int from = emulator::here.lane ^ bits;
  return emulator::shuffle("__shfl_xor_sync", mask, value, from, from < emulator::segment(width) + width,
                           where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = emulator::kWarp, EMULATOR_WHERE) {
  const int from = emulator::here.lane + static_cast<int>(by);
  return emulator::shuffle("__shfl_down_sync", mask, value, from, from < emulator::segment(width) + width,
                           where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = emulator::kWarp, EMULATOR_WHERE) {
  const int from = emulator::here.lane - static_cast<int>(by);
  return emulator::shuffle("__shfl_up_sync", mask, value, from, from >= emulator::segment(width), where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_WHERE) {
  const auto all = emulator::gather<int>("__ballot_sync", mask, predicate != 0, where);
  unsigned bits = 0;
  for (int i = 0; i < emulator::kWarp; ++i) bits |= static_cast<unsigned>(all.lane[i]) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_WHERE) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_WHERE) {
  return __ballot_sync(mask, predicate, where) == mask;
}

#define EMULATOR_REDUCE(name, T, expression)                                                         \
  inline T name(unsigned mask, T value, EMULATOR_WHERE) {                                            \
    return emulator::reduce<T>(#name, mask, value, [](T a, T b) -> T { return expression; }, where); \
  }
EMULATOR_REDUCE(__reduce_add_sync, unsigned, a + b)
EMULATOR_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMULATOR_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
EMULATOR_REDUCE(__reduce_and_sync, unsigned, a& b)
EMULATOR_REDUCE(__reduce_or_sync, unsigned, a | b)
EMULATOR_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
EMULATOR_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMULATOR_REDUCE(__reduce_max_sync, int, a < b ? b : a)
#undef EMULATOR_REDUCE

namespace emulator {

struct MmaOperands {
  uint32_t a[4], b[2];
};
inline int byte_of(uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); }

// D = A * B + C as PTX's mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 spreads them over a warp. With
// g = lane / 4 and t = lane % 4, four bytes a register:
//   A (16 x 32): a0 row g, columns 4t..4t+3; a1 row g + 8; a2, a3 the same rows, columns 16 further
//   B (32 x 8):  b0 rows 4t..4t+3 of column g; b1 16 rows further
//   C, D (16 x 8): c0, c1 row g, columns 2t and 2t + 1; c2, c3 row g + 8
inline void mma_m16n8k32_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const int (&c)[4],
                            EMULATOR_WHERE) {
  const MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto all = gather("mma.m16n8k32", 0xffffffffu, mine, where);
  const int g = here.lane / 4, t = here.lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * t + i % 2;
    int sum = c[i];
    for (int k = 0; k < 32; ++k) {
      const int half = k / 16, quad = k % 16 / 4, byte = k % 4;
      sum += byte_of(all.lane[g * 4 + quad].a[lower + 2 * half], byte) *
             byte_of(all.lane[column * 4 + quad].b[half], byte);
    }
    d[i] = sum;
  }
}

// S: __half or __nv_bfloat16.
template <class S>
float half_of(uint32_t word, int i) {
  const auto bits = static_cast<uint16_t>(word >> 16 * i);
  S x;
  memcpy(&x, &bits, sizeof x);
  return static_cast<float>(x);
}

// The same of m16n8k16 with .f16 or .bf16 and .f32: two numbers a register, the first in its lower half.
//   A (16 x 16): a0 row g, columns 2t and 2t + 1; a1 row g + 8; a2, a3 the same rows, columns 8 further
//   B (16 x 8):  b0 rows 2t and 2t + 1 of column g; b1 8 rows further
//   C, D (16 x 8): c0, c1 row g, columns 2t and 2t + 1; c2, c3 row g + 8
// Products are exact, and added up in the order of k. A GPU adds several at a time, and cuts sums off.
template <class S>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4],
                  EMULATOR_WHERE) {
  const MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto all = gather("mma.m16n8k16", 0xffffffffu, mine, where);
  const int g = here.lane / 4, t = here.lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * t + i % 2;
    float sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const int half = k / 8, pair = k % 8 / 2, which = k % 2;
      sum += half_of<S>(all.lane[g * 4 + pair].a[lower + 2 * half], which) *
             half_of<S>(all.lane[column * 4 + pair].b[half], which);
    }
    d[i] = sum;
  }
}

// PTX's ldmatrix.sync.aligned.m8n8.x4.shared.b16: lane 8 * j + i names row i, of 16 bytes, of matrix j; each
// lane is given four bytes of each matrix: of row lane / 4, from 4 * (lane % 4) on.
inline void ldmatrix_x4(uint32_t (&to)[4], const void* row, EMULATOR_WHERE) {
  check_aligned(row, 16, "ldmatrix of a row", where);
  const auto rows = gather("ldmatrix", 0xffffffffu, row, where);
  for (int j = 0; j < 4; ++j)
    memcpy(&to[j], static_cast<const char*>(rows.lane[8 * j + here.lane / 4]) + here.lane % 4 * 4, 4);
}

}  // namespace emulator
