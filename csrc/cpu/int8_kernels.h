// The kernels of the 8-bit matrix product, one table an instruction set: see isa.h.
#pragma once
#include "../common/int8.h"

namespace onepass {

// How a kernel wants its rows of x: k in fours, row by row of a tile, `bytes` for each four.
struct Int8Form {
  int32_t rows;    // of a tile at most
  int32_t bytes;   // 4, or 8 where |x| and its signs stand side by side
  int32_t offset;  // what has been added to x: the sums are too large by offset * (sum of the weights)
  int32_t few;     // up to so many rows take kPanelsAtOnce: memory gives more where several places are read
};
constexpr int64_t kPanelsAtOnce = 4;
constexpr int64_t kDepth = 1024;  // k at a time: 16 KB of a panel, which stay in the first cache

// What becomes of the sums of a row for the outputs of one panel.
struct Int8Row {
  float scale;
  int32_t zero;   // its zero_point and the form's offset together
  int32_t start;  // what its sums start with
};

struct Int8Kernels {
  const Int8Form* (*form)(int32_t bits);
  // One row of x, whole numbers -128..127, to row r of a tile of `rows`. Returns what its sums start with.
  int32_t (*place)(const int8_t* x, int64_t k, const Int8Form&, int32_t rows, int32_t r, uint8_t* to);
  // c[count][rows][16] += tile (fours of it) * panels, `apart` bytes from each other. count: 1, or for few
  // rows kPanelsAtOnce.
  void (*multiply)(const uint8_t* tile, int32_t rows, const Int8Form&, const int8_t* panels, int64_t apart,
                   int64_t count, int64_t fours, int32_t* c);
  // The sums of rows [first, first + count) for outputs [from, from + n), those of one panel, to y.
  void (*finish)(const Int8Call&, const int32_t* c, const Int8Row* rows, int64_t first, int64_t count,
                 int64_t from, int64_t n);
};

}  // namespace onepass
