// What is worked on by quantization: a call in plain numbers and memory, the same on every device.
#pragma once
#include <cstdint>

#include "../rules/quant.h"
#include "dtype.h"

namespace onepass {

// Elements in memory order, cut into rows, and rows into groups that share a scale. The last group of a row
// may be shorter. One row of one group: a scale for the whole tensor.
struct Groups {
  int64_t rows, columns, size;

  ONEPASS_HD int64_t of_row() const { return columns > size ? (columns + size - 1) / size : 1; }
  ONEPASS_HD int64_t count() const { return rows * of_row(); }
  ONEPASS_HD int64_t numel() const { return rows * columns; }
  ONEPASS_HD int64_t begin(int64_t group) const {
    return of_row() == 1 ? group * columns : group / of_row() * columns + group % of_row() * size;
  }
  // The group that has this element.
  ONEPASS_HD int64_t holding(int64_t i) const { return i / columns * of_row() + i % columns / size; }
  ONEPASS_HD int64_t length(int64_t group) const {
    const int64_t left = columns - group % of_row() * size;
    return left < size ? left : size;
  }
};

struct QuantCall {
  Groups groups{};
  DType dtype = DType::kFloat32;  // of real numbers
  bool is_signed = true;          // of whole numbers
  void* real = nullptr;           // read by quantize, written by dequantize
  void* whole = nullptr;
  float* scale = nullptr;         // a group each
  int32_t* zero_point = nullptr;  // null: all zero
  int32_t device = 0;             // index among those of its kind
  void* scratch = nullptr;        // what the driver wants besides: quant_driver.h
};

// There and back in one pass, and the gradients of that.
struct FakeQuantCall : QuantCall {
  Levels levels{};
  void* output = nullptr;
  uint8_t* mask = nullptr;  // a bit an element: inside the range?
  const void* grad_output = nullptr;
  void* grad_input = nullptr;
  float* grad_scale = nullptr;  // a group each; null: not wanted, and neither real nor scale is there
};

}  // namespace onepass
