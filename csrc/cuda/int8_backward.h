// What the CUDA kernels of the 8-bit product's gradients are given, and what starts them. Plain data and
// plain C++.
//
// A gradient is y[line, output] = scale[line] * sum over d of q[line, d] * (right[d, output] - zero[d]),
// where q * scale are lines of g, its rows or its columns, times a factor for each d.
#pragma once
#include "../common/int8_backward.h"
#include "../rules/philox.h"
#include "int8.h"

namespace onepass::cuda {

// What comes before the product: q and the other factor, made ready for tensor cores, which read bytes along
// the depth. Pointers are to device memory, null where there is none.
struct ReadyInt8Work {
  int64_t lines, depth, outputs;
  const void* g;  // [lines, depth]; or [depth, lines]: its columns
  bool of_rows;
  DType g_dtype;
  const float* factors;  // for each d; null: 1
  bool by_chance;        // q is rounded by philox, else to nearest
  Philox philox;

  const uint8_t* right;  // [depth, outputs]
  bool right_is_signed;
  const int32_t* zero;  // for each d; null: 0

  bool g_aligned, factors_aligned, right_aligned;  // consist of 16-byte pieces at 16-byte boundaries

  // What is made. Rows of q and turned begin at 16-byte boundaries, width apart.
  int64_t width;
  int8_t* q;        // [lines, width], zero behind the depth
  uint8_t* turned;  // [outputs, width], as signed
  float* scales;    // of each line
  int64_t* starts;  // of each line, what its sums lack of right - zero; null: nothing

  unsigned line_blocks;  // the first ones of the launch, which sees to it
};

// The product of q and turned, as one of whole numbers, which has lines for rows and scales for x_scale.
struct GradientInt8Work {
  Int8Work product;
  const int64_t* starts;  // of each line, what its sums start with; null: 0
};

// One launch each. is_long: the depth is beyond kMaxDepth.
void start_ready(ReadyInt8Work work, cudaStream_t stream);
void start_gradient(const GradientInt8Work& work, Int8Cut cut, bool is_long, cudaStream_t stream);

}  // namespace onepass::cuda
