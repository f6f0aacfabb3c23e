// The kernels of quantization, one table an instruction set: see isa.h.
#pragma once
#include "../common/quant.h"

namespace onepass {

constexpr int kRealDTypes = 4;  // those of DType, in its order; float64 has no kernel

struct QuantKernels {
  // What n elements reach.
  Extent (*extent[kRealDTypes])(const void* x, int64_t n);
  // n elements to q, and back.
  void (*quantize[kRealDTypes])(const void* x, int64_t n, const Grid&, const Levels&, void* q);
  void (*dequantize[kRealDTypes])(const void* q, int64_t n, const Grid&, bool is_signed, void* x);
};

}  // namespace onepass
