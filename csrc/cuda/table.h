// What a kernel reads of a launch, as it lies in device memory. Plain data and plain C++: built on the host,
// copied as it is.
//
// A table changes when a parameter, a state, a group or a hyperparameter does, which is seldom; then it is
// written anew. Gradients lie elsewhere at every step, so their pointers travel as kernel arguments, and only
// a launch with more tensors than arguments can hold has them in the table.
#pragma once
#include <cstring>

#include "../common/plan.h"

namespace onepass::cuda {

constexpr int kVectorBytes = 16;   // of one access to global memory
constexpr int64_t kTile = 4096;    // elements that a block takes at a time
constexpr int kSmallSlots = 496;   // gradient pointers in the 4 KB of arguments that every driver takes
constexpr int kLargeSlots = 4064;  // in the 32 KB that drivers for CUDA 12.1 and later take

// One parameter. Tile 0 starts at element 0 and holds the `head`; all others start on a 16-byte boundary of
// the parameter.
struct DeviceRow {
  void* data[kMaxStreams];  // parameter, nothing for the gradient, states
  void* step;
  int64_t numel, first_tile;
  int32_t group;
  int32_t head;   // elements before the parameter's first 16-byte boundary
  int32_t box;    // where its box starts in the table's boxes; -1 where all streams are one run
  bool aligned;   // every state has a 16-byte boundary where the parameter has one
  bool step_f64;  // the step counter is float64, else float32
};

// A kernel's arguments. Everything they point to is device memory.
template <int kSlots>
struct OptimArgs {
  const DeviceRow* rows;
  const int64_t* boxes;
  const double* hyper;
  const void* const* grads;  // null where the pointers are in `grad`
  const float *grad_scale, *found_inf;
  unsigned* blocks_done;  // zero between launches
  int64_t tiles;
  int32_t count;  // of rows
  int32_t hyper_columns;
  const void* grad[kSlots];
};
static_assert(sizeof(OptimArgs<kSmallSlots>) <= 4096 && sizeof(OptimArgs<kLargeSlots>) <= 32764);

// A table put together on the host: bytes, and where its parts start in them.
struct Image {
  std::vector<char> bytes;
  size_t rows = 0, boxes = 0, hyper = 0, grads = 0;
  int64_t tiles = 0;
  int32_t count = 0;

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

inline uintptr_t misalignment(const void* start, int64_t elements, DType type) {
  return (reinterpret_cast<uintptr_t>(start) + elements * size_of(type)) % kVectorBytes;
}

inline DeviceRow device_row(const Row& row, int streams, int64_t first_tile) {
  DeviceRow out;
  std::memset(&out, 0, sizeof out);  // padding too: images are compared as bytes
  std::memcpy(out.data, row.data, sizeof out.data);
  out.data[kGrad] = nullptr;
  out.step = row.step;
  out.numel = row.numel;
  out.first_tile = first_tile;
  out.group = row.group;
  out.box = -1;
  out.step_f64 = row.step_dtype == DType::kFloat64;
  const int64_t off = misalignment(row.data[kParam], 0, row.dtype[kParam]);
  const int64_t head = off ? (kVectorBytes - off) / size_of(row.dtype[kParam]) : 0;
  out.head = static_cast<int32_t>(row.box || head > row.numel ? 0 : head);
  out.aligned = !row.box;
  for (int s = 0; s < streams; ++s)
    if (s != kGrad) out.aligned &= misalignment(row.data[s], out.head, row.dtype[s]) == 0;
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

// The table of those rows of a launch whose parameters are of one dtype.
inline Image image_of(const Launch& launch, const std::vector<const Row*>& rows, int streams, int64_t groups,
                      bool grads_in_table) {
  Image image;
  std::vector<DeviceRow> out;
  std::vector<int64_t> boxes;
  std::vector<const void*> grads;
  for (const Row* row : rows) {
    out.push_back(device_row(*row, streams, image.tiles));
    image.tiles += tiles_of(row->numel, out.back().head);
    if (row->box) out.back().box = append_box(boxes, *row->box, streams);
    if (grads_in_table) grads.push_back(row->data[kGrad]);
  }
  image.count = static_cast<int32_t>(rows.size());
  image.rows = image.append(out.data(), out.size());
  image.boxes = image.append(boxes.data(), boxes.size());
  image.hyper = image.append(launch.hyper, launch.hyper_on_device ? 0 : groups * launch.hyper_columns);
  image.grads = image.append(grads.data(), grads.size());
  return image;
}

}  // namespace onepass::cuda
