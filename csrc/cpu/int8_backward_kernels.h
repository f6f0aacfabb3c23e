// The kernels of the gradients of the 8-bit product, one table an instruction set: see isa.h.
#pragma once
#include "../common/int8.h"
#include "../rules/philox.h"
#include "quant_kernels.h"

namespace onepass {

struct Int8BackwardKernels {
  // A row of n numbers, each times a factor of its own (null: 1), to floats.
  void (*row[kRealDTypes])(const void* g, const float* factors, int64_t n, float* to);
  // `count` columns that begin at g, of m numbers each, n from one row to the next: times a factor a row
  // (null: 1), to floats that lie column by column, `apart` from each other.
  void (*columns[kRealDTypes])(const void* g, const float* factors, int64_t m, int64_t n, int64_t count,
                               int64_t apart, float* to);
  // n numbers to -127..127, by chance. first: the index of x[0] among Philox's elements.
  void (*round)(const float* x, int64_t n, const Grid&, const Philox&, int64_t first, int8_t* q);
  // A panel of packed weights, and its sums, of `count` outputs at most 16: from [depth, outputs], where an
  // output's numbers are `apart` from each other. flip: turned in every byte, 0x80 of unsigned ones. It may
  // hold -128, other than int8_pack's: what it is multiplied by, q, does not.
  void (*turn)(const uint8_t* from, int64_t depth, int64_t apart, int64_t count, uint8_t flip, int8_t* panel,
               int32_t* sums);
  // n floats to numbers as they are stored.
  void (*narrow[kRealDTypes])(const float* x, int64_t n, void* y);
};

}  // namespace onepass
