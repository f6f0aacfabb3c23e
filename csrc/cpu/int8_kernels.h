// The kernels of the 8-bit matrix product, one table an instruction set: see isa.h.
#pragma once
#include "../common/int8.h"

namespace onepass {

// How a kernel wants its rows of x: k in fours, row by row of a tile, `bytes` for each four.
struct Int8Form {
  int32_t rows;    // of a tile at most
  int32_t bytes;   // 4, or 8 where sizes and signs stand side by side
  int32_t offset;  // what has been added to x: the sums are too large by offset * (sum of the weights)
};

// What becomes of the sums of a row for the outputs of one panel.
struct Int8Row {
  float scale;
  int32_t zero;  // its zero_point and the form's offset together
};

struct Int8Kernels {
  const Int8Form* (*form)(int32_t bits);
  // One row of x, whole numbers -128..127, to row r of a tile of `rows`.
  void (*place)(const int8_t* x, int64_t k, const Int8Form&, int32_t rows, int32_t r, uint8_t* to);
  // c[rows][16] += tile (fours of it) * panel.
  void (*multiply)(const uint8_t* tile, int32_t rows, const Int8Form&, const int8_t* panel, int64_t fours,
                   int32_t* c);
  // The sums of rows [first, first + count) for outputs [from, from + n), those of one panel, to y.
  void (*finish)(const Int8Call&, const int32_t* c, const Int8Row* rows, int64_t first, int64_t count,
                 int64_t from, int64_t n);
};

}  // namespace onepass
