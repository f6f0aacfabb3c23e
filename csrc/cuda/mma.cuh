// The tensor core's products of 8-bit numbers and of halves, and how operands come out of shared memory.
//
// mma.m16n8k32 (PTX ISA, "Matrix Fragments for mma.m16n8k32", .s8): lane L, of group g = L / 4 and place
// t = L % 4 there, has, four numbers a register:
//   a, 16 rows of 32:  a[0] row g, k 4t ... 4t + 3; a[1] row g + 8; a[2], a[3] the same rows, k 16 further
//   b, 8 columns of 32: b0 column g, k 4t ... 4t + 3; b1 k 16 further
//   c, 16 rows of 8:   c[0], c[1] row g, columns 2t and 2t + 1; c[2], c[3] row g + 8
//
// mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", .f16 and .bf16): two
// numbers a register, the first in its lower half:
//   a, 16 rows of 16:   a[0] row g, k 2t and 2t + 1; a[1] row g + 8; a[2], a[3] the same rows, k 8 further
//   b, 8 columns of 16: b0 column g, k 2t and 2t + 1; b1 k 8 further
//   c as above, in float32
//
// ldmatrix.x4 (PTX ISA, "ldmatrix") reads four matrices of 8 rows of 16 bytes. Lane 8j + i names row i of
// matrix j; lane L is given, in register j, bytes 4t ... 4t + 3 of row g of matrix j: what a register of a
// holds of 8 rows and 16 k, and what one of b holds of 8 columns and 16 k, where k is innermost.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace onepass::cuda {

#if defined(ONEPASS_EMULATOR)

inline void ldmatrix_x4(uint32_t (&to)[4], const void* row) { emulator::ldmatrix_x4(to, row); }
inline void mma_m16n8k32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  emulator::mma_m16n8k32_s8(c, a, b, c);
}
template <class S>
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  emulator::mma_m16n8k16<S>(c, a, b, c);
}

#else

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(at)
               : "memory");
}
// c += a * b
__device__ __forceinline__ void mma_m16n8k32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#define ONEPASS_MMA_M16N8K16(dtype)                            \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." dtype "." dtype \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "              \
      "{%8, %9}, {%0, %1, %2, %3};"                            \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])         \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
// S: __half or __nv_bfloat16
template <class S>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  if constexpr (std::is_same_v<S, __half>)
    ONEPASS_MMA_M16N8K16("f16");
  else
    ONEPASS_MMA_M16N8K16("bf16");
}
#undef ONEPASS_MMA_M16N8K16

#endif

}  // namespace onepass::cuda
