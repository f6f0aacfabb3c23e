// The kernels of the product of real numbers and 8-bit weights, one table an instruction set: see isa.h.
#pragma once
#include "../common/int8.h"
#include "quant_kernels.h"

namespace onepass {

struct Int8WeightKernels {
  // A row of k numbers to floats, with zeros up to a whole four.
  void (*widen[kRealDTypes])(const void* x, int64_t k, float* to);
  // Rows of floats, `apart` from each other, by a panel. sums: [rows, 16, 4], of each output those of every
  // fourth k, which has still to be added up.
  void (*multiply)(const float* x, int64_t apart, int64_t rows, const int8_t* panel, int64_t fours,
                   float* sums);
  // The sums of rows [first, first + rows) for outputs [from, from + n), those of one panel, to y.
  void (*finish)(const Int8Call&, const float* sums, int64_t first, int64_t rows, int64_t from, int64_t n);
};

}  // namespace onepass
