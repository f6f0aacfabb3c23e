// 8-bit weights as real numbers, exactly, on CUDA: without conversions, of which a multiprocessor does few.
//
// A byte becomes the lowest bits of a number whose exponent makes the lowest bit worth one; what that number
// has too much is subtracted. Two halves at a time: (n + low seven bits) - (n + the bit of 128), where n is
// 1024 of float16 and 128 of bfloat16, which has seven bits behind its exponent: n + 128 is the next one up.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "int8_pieces.cuh"

namespace onepass::cuda {

// Four weights, the lowest byte first, as two pairs of S.
template <class S>
__device__ __forceinline__ void widen(uint32_t four, uint32_t (&to)[2]) {
  constexpr bool kIsHalf = std::is_same_v<S, __half>;
  using Pair = std::conditional_t<kIsHalf, __half2, __nv_bfloat162>;
  constexpr uint32_t kExponent = kIsHalf ? 0x64 : 0x43;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t above = __byte_perm(four, kExponent, i == 0 ? 0x4140 : 0x4342);
    const uint32_t low_bits = above & 0xff7fff7f, sign_bit = above & 0xff80ff80;
    Pair whole, excess;
    memcpy(&whole, &low_bits, sizeof whole);
    memcpy(&excess, &sign_bit, sizeof excess);
    const Pair weights = __hsub2(whole, excess);
    memcpy(&to[i], &weights, sizeof weights);
  }
}

// As floats: 2^23 + (weight + 128), less 2^23 + 128.
__device__ __forceinline__ void widen(uint32_t four, float (&to)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    to[i] = __uint_as_float(__byte_perm(four ^ kHighestBits, 0x4b000000, 0x7440 + i)) - 8388736.0f;
}

}  // namespace onepass::cuda
