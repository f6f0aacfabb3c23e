// What one call of a normalization works on. Plain data: the CPU and the CUDA drivers read the same.
//
// Tensors are dense, all in one order: images, channels, pixels (NCHW) or images, pixels, channels (NHWC).
// Spatial dimensions count as one: a normalization does not see how pixels lie beside each other. Masks hold
// one bit an element in the order of memory, element k in bit k % 8 of byte k / 8.
#pragma once
#include <cstdint>

#include "../rules/norm.h"
#include "dtype.h"

namespace onepass {

struct NormShape {
  int64_t images = 0, channels = 0, pixels = 0;
  bool channels_last = false;
  int64_t share =
      1;  // so many channels, one behind the other, are one: have statistics and parameters in common

  ONEPASS_HD int64_t numel() const { return images * channels * pixels; }
  ONEPASS_HD int64_t rows() const { return images * pixels; }
  ONEPASS_HD int64_t count() const { return rows() * share; }    // elements that statistics are of
  ONEPASS_HD int64_t norms() const { return channels / share; }  // channels as a user has them
};

// One value a channel, in any served dtype; data is null where there is none.
struct ChannelVector {
  void* data = nullptr;
  int64_t stride = 1;
  DType dtype = DType::kFloat32;
};

// How a CPU's passes go through memory; made by NormPlan, csrc/cpu/norm_plan.h. To ask for a line is to have
// it fetched ahead of its turn.
struct Flow {
  bool past = false;      // results go past the caches
  bool first = false;     // the first pass asks for what it reads
  bool second = false;    // so does the second
  int64_t next = 0;       // it asks for what the first pass of the next group reads, so many bytes further
  bool residual = false;  // the second pass asks for the residual
  bool results = false;   // and for what it writes
  bool early = false;     // the first pass of a backward writes dresidual, the second one dx alone
  // Where channels are innermost:
  bool early_past = false;  // that goes past the caches, too
  bool down = false;        // the second pass goes from the end to the beginning
};

struct NormCall {
  NormShape shape;
  DType dtype = DType::kFloat32;  // of x, residual, y and their gradients
  Activation act = Activation::kNone;
  double negative_slope = 0;
  const void *x = nullptr, *residual = nullptr;  // residual: null where there is none, or none is needed
  void* y = nullptr;                             // forward
  const void* dy = nullptr;                      // backward
  void *dx = nullptr, *dresidual = nullptr;      // dresidual: null where none is wanted
  uint8_t* mask = nullptr;  // where the activation lets gradients pass; null: told from x (and residual)
  void* stats = nullptr;    // [3, channels] of the arithmetic type, as ChannelStats has them
  bool given = false;       // backward: the statistics were given, not those of x
  Flow flow;
  ChannelVector weight, bias;
  int32_t device = 0;       // index among those of its kind
  void* scratch = nullptr;  // what the driver wants besides: norm_driver.h
};

// What forward writes of the running statistics, and how.
struct RunningStats {
  ChannelVector mean, variance;
  int64_t* batches = nullptr;  // counted up by one; null where nobody counts
  bool average = false;        // over all batches so far, instead of by momentum
  double momentum = 0;

  double factor() const {
    if (!average) return momentum;
    return batches ? 1.0 / static_cast<double>(*batches) : 0;
  }
};

}  // namespace onepass
