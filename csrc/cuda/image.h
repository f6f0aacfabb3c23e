// A table put together on the host, from the rows of a launch.
#pragma once
#include <cstring>

#include "table.h"

namespace onepass::cuda {

using Rows = std::vector<const Row*>;

// Bytes, and where a table's parts start in them.
struct Image {
  std::vector<char> bytes;
  size_t rows = 0, boxes = 0, grads = 0, hyper = 0;
  int64_t tiles = 0;

  template <class T>
  size_t append(const T* from, size_t n) {
    const size_t at = (bytes.size() + 15) / 16 * 16;
    bytes.resize(at + n * sizeof(T));
    if (n) std::memcpy(bytes.data() + at, from, n * sizeof(T));
    return at;
  }
};

inline int64_t tiles_of(int64_t numel, int64_t head) {
  if (numel == 0) return 0;
  const int64_t tiles = (numel - head + kTile - 1) / kTile;
  return tiles ? tiles : 1;
}
inline int64_t tiles_of(const DeviceRow& row) { return tiles_of(row.numel, row.head); }
inline int64_t tiles_of(const GradRow& row) { return tiles_of(row.numel, 0); }
inline int64_t tiles_of(const SumRow& row) { return tiles_of(row.numel, 0); }

inline uintptr_t misalignment(const void* start, int64_t elements, DType type) {
  return (reinterpret_cast<uintptr_t>(start) + elements * size_of(type)) % kVectorBytes;
}

// Of its first `streams` streams; where it lies in the table is left open.
inline DeviceRow device_row(const Row& row, int streams) {
  DeviceRow out;
  std::memset(&out, 0, sizeof out);  // padding too: images are compared as bytes
  std::memcpy(out.data, row.data, streams * sizeof(void*));
  out.data[kGrad] = nullptr;
  out.step = row.step;
  out.numel = row.numel;
  out.group = row.group;
  out.step_f64 = row.step_dtype == DType::kFloat64;
  out.wide_grad = row.dtype[kGrad] != row.dtype[kParam];
  const int64_t off = misalignment(row.data[kParam], 0, row.dtype[kParam]);
  const int64_t head = off ? (kVectorBytes - off) / size_of(row.dtype[kParam]) : 0;
  out.head = static_cast<int32_t>(row.box || head > row.numel ? 0 : head);
  out.aligned = !row.box;
  for (int s = 0; s < streams; ++s)
    if (s != kGrad) out.aligned &= misalignment(row.data[s], out.head, row.dtype[s]) == 0;
  return out;
}

inline GradRow grad_row(const Row& row) {
  GradRow out;
  std::memset(&out, 0, sizeof out);
  out.numel = row.numel;
  out.dtype = row.dtype[kGrad];
  return out;
}

inline SumRow sum_row(const Row& row) {
  SumRow out;
  std::memset(&out, 0, sizeof out);
  out.sum = row.data[kParam];
  out.numel = row.numel;
  out.dtype = row.dtype[kGrad];
  return out;
}

// A box as the kernel walks it: dimensions, sizes, then the strides of each stream.
inline int32_t append_box(std::vector<int64_t>& boxes, const Layout& box, int streams) {
  const int32_t at = static_cast<int32_t>(boxes.size());
  boxes.push_back(static_cast<int64_t>(box.sizes.size()));
  boxes.insert(boxes.end(), box.sizes.begin(), box.sizes.end());
  for (int s = 0; s < streams; ++s) boxes.insert(boxes.end(), box.strides[s].begin(), box.strides[s].end());
  return at;
}

// The table of these rows, each as make(row) has it: a DeviceRow or a GradRow.
template <class Make>
Image image_of_rows(const Rows& rows, int streams, const Make& make) {
  Image image;
  std::vector<decltype(make(*rows[0]))> out;
  std::vector<int64_t> boxes;
  std::vector<void*> grads;
  for (const Row* row : rows) {
    auto& made = out.emplace_back(make(*row));
    made.first_tile = image.tiles;
    made.box = row->box ? append_box(boxes, *row->box, streams) : -1;
    image.tiles += tiles_of(made);
    if (rows.size() > kLargeSlots) grads.push_back(row->data[kGrad]);
  }
  image.rows = image.append(out.data(), out.size());
  image.boxes = image.append(boxes.data(), boxes.size());
  image.grads = image.append(grads.data(), grads.size());
  return image;
}

// For a step over rows that have so many streams.
inline Image step_image(const Launch& launch, const Rows& rows, int streams, int64_t groups) {
  Image image = image_of_rows(rows, streams, [&](const Row& row) { return device_row(row, streams); });
  image.hyper = image.append(launch.hyper, launch.hyper_on_device ? 0 : groups * launch.hyper_columns);
  return image;
}

// For what looks at gradients alone, or with their sums.
inline Image grads_image(const Rows& rows) { return image_of_rows(rows, kGrad + 1, grad_row); }
inline Image sums_image(const Rows& rows) { return image_of_rows(rows, kGrad + 1, sum_row); }

}  // namespace onepass::cuda
