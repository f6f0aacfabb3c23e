// The 8-bit matrix product: y = act((x - zero) @ w' * x_scale * w_scale + bias), and weights as it reads
// them. x is whole numbers, or real and quantized row by row on the way. With 8-bit weights alone x is real
// and stays so: y = act(x @ w' * w_scale + bias). y may be quantized again, by one given scale: a byte each.
//
// Packed weights, version 1, of [n, k] whole numbers in -127..127, with n cut into panels of 16 and k into
// fours:
//   header     64 bytes: magic, version, n, k
//   sums       int32 [panels * 16]: of each row over k, padded to a multiple of 64 bytes
//   panels     int8 [panels, fours, 16, 4]; zero where there is no row or no k
// 64 bytes are what one step of a kernel reads: four k of sixteen outputs.
#pragma once
#include <cstdint>

#include "../rules/int8.h"
#include "../rules/quant.h"
#include "dtype.h"

namespace onepass {

constexpr int64_t kPanel = 16, kFour = 4, kStep = kPanel * kFour;
constexpr int64_t kPackedMagic = 0x3870'6173'7365'6e6f, kPackedVersion = 1;  // "onessap8"
constexpr int64_t kMaxDepth = 65'536;  // k: 2^16 * 255 * 127 fits an int32

struct PackedHeader {
  int64_t magic, version, n, k;
  int64_t unused[4];
};
static_assert(sizeof(PackedHeader) == 64);

// Where things are in a packed weight.
struct PackedShape {
  int64_t n, k;

  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  int64_t fours() const { return (k + kFour - 1) / kFour; }
  int64_t sums_at() const { return sizeof(PackedHeader); }
  int64_t panels_at() const { return sums_at() + panels() * kPanel * 4; }
  int64_t panel_bytes() const { return fours() * kStep; }
  int64_t bytes() const { return panels_at() + panels() * panel_bytes(); }
};

// A call in plain numbers and memory. x is real or whole.
struct Int8Call {
  int64_t m = 0;
  PackedShape shape{};
  const uint8_t* weight = nullptr;  // packed; for CUDA as it came: int8 [n, k]

  const void* x = nullptr;  // [m, k]
  bool x_is_real = false, x_is_signed = true;
  DType x_dtype = DType::kFloat32;
  bool symmetric = true;
  int32_t bits = 8;
  const float* x_scale = nullptr;    // whole x: a row each; null: 1
  const int32_t* x_zero = nullptr;   // whole x: a row each; null: 0
  const int32_t* x_start = nullptr;  // what the sums of a row start with; null: 0

  const float* w_scale = nullptr;  // an output each; null: 1
  const float* bias = nullptr;     // an output each, or null
  Gate gate = Gate::kNone;
  void* y = nullptr;  // [m, n]
  DType y_dtype = DType::kFloat32;
  bool raw = false;                 // y takes the int32 sums as they are
  const float* y_scale = nullptr;   // one, by which y is quantized; null: y is real, or raw
  const int32_t* y_zero = nullptr;  // one, of an unsigned y, 0..255; null: it is signed, -127..127

  int32_t device = 0;       // index among those of its kind
  void* scratch = nullptr;  // what the driver wants besides: int8_driver.h

  int64_t y_bytes() const { return raw ? 4 : y_scale ? 1 : size_of(y_dtype); }  // of an output
  ONEPASS_HD Grid y_grid() const { return Grid::given(*y_scale, y_zero ? *y_zero : 0); }
  ONEPASS_HD Levels y_levels() const { return Levels::make(!y_zero, 8); }
};

}  // namespace onepass
