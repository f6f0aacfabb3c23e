// The kernels of fake quantization, one table an instruction set: see isa.h.
#pragma once
#include "quant_kernels.h"

namespace onepass {

// Works on n elements of one group, from element `from` of the tensor on.
struct FakeQuantKernels {
  // To output and mask. The bits before the first, in its byte, stay as they are; those behind the last
  // become 0.
  void (*forward[kRealDTypes])(const FakeQuantCall&, const Grid&, int64_t from, int64_t n);
  // To grad_input; returns their part of the gradient of scale, 0 where none is wanted.
  double (*backward[kRealDTypes])(const FakeQuantCall&, const Grid&, int64_t from, int64_t n);
};

}  // namespace onepass
