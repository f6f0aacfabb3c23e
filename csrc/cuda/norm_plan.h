// How a normalization is cut up on CUDA: see NormPlan.
//
// In two launches, by the shape alone. In one launch, which reads its input once, where what a channel (or a
// slice of them) has fits what shared memory there is: by the shape and the device.
#pragma once
#include <algorithm>

#include "device.h"
#include "norm.h"

namespace onepass::cuda {

constexpr int64_t kPlanarBlocks = 1056;       // of a first pass, about: eight on each of 132 multiprocessors
constexpr int64_t kInterleavedBlocks = 264;   // two: the last block of a unit reads what all of them leave
constexpr int64_t kApplyThreads = 1 << 18;    // of a second pass, about: what a GPU runs at a time
constexpr int64_t kFewest = 4, kMost = 1024;  // groups that a thread sums up, in single precision
constexpr int64_t kLargestCluster = 8;        // that every device with clusters runs

// Shared memory that the kernels which keep what they read have besides, at most.
constexpr int64_t kClustersOwn = 1 << 10, kSlicesOwn = 17 << 10;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- in two launches --------------------------------------------------------------------------------------
// Parts of a unit in which threads take `turns` groups together, so many rows of them.
inline int64_t parts_of(int64_t turns, int64_t rows, int64_t wanted) {
  const int64_t fewest = ceil_div(turns, rows * kMost), most = std::max<int64_t>(1, turns / (rows * kFewest));
  return std::max(std::min(wanted, most), fewest);
}

// Slices of a pixel, of the same width, with so many groups side by side at most. Returns their groups.
inline int64_t cut_into_slices(NormPlan& plan, const NormShape& s, int64_t most) {
  const int64_t groups = ceil_div(s.channels, kGroup), across = ceil_div(groups, ceil_div(groups, most));
  plan.width = across * kGroup;
  plan.units = ceil_div(s.channels, plan.width);
  return across;
}

inline NormPlan norm_plan(const NormShape& s) {
  NormPlan plan;
  plan.stride = 1;
  if (s.channels == 0) return plan;
  if (s.channels_last) {
    const int64_t rows = kNormThreads / cut_into_slices(plan, s, kSliceGroups);
    plan.parts = parts_of(s.rows(), rows, ceil_div(kInterleavedBlocks, plan.units));
  } else {
    plan.units = s.channels;
    plan.parts =
        parts_of(s.images * plane_slots(s.pixels), kNormThreads, ceil_div(kPlanarBlocks, s.channels));
  }
  plan.at_once = plan.units;

  // A step of the second pass: so many whole rows of memory that go through all channels.
  const int64_t row = s.channels_last ? s.channels : s.channels * s.pixels;
  const int64_t groups = ceil_div(s.numel(), kGroup);
  plan.fixed = row % kGroup == 0 && row > 0;
  plan.stride = kApplyThreads;
  if (plan.fixed) plan.stride = std::max<int64_t>(1, kApplyThreads / (row / kGroup)) * (row / kGroup);
  plan.stride = std::max<int64_t>(1, std::min(plan.stride, groups));
  return plan;
}

// --- in one launch ----------------------------------------------------------------------------------------
// Blocks on a multiprocessor that are to run side by side: as many as their registers allow, which is what
// launch bounds say. While one waits for the others of its cluster, another one reads.
inline int64_t beside(const NormCall& call) {
  return call.dtype == DType::kFloat64 || call.shape.channels_last ? 1 : 2;
}

// Groups that a block has room to keep, of so many bytes, where so many blocks share a multiprocessor.
inline int64_t room(const Device& device, int64_t blocks, int64_t own, int64_t bytes) {
  const int64_t each = std::min(device.shared / blocks - device.reserved_shared, device.block_shared);
  return std::max<int64_t>(0, each - own) / bytes;
}

// A cluster of blocks keeps a channel: as few of them as have the room, but enough to fill the device. A mask
// wants planes that begin at a byte of it.
inline bool fits_clusters(NormPlan& plan, const NormCall& call, int64_t bytes, const Device& device) {
  const NormShape& s = call.shape;
  if (!device.clusters || (call.y && call.mask && s.pixels % kGroup)) return false;
  const int64_t groups = s.images * plane_slots(s.pixels), blocks = beside(call);
  for (int64_t parts = 1; parts <= kLargestCluster; parts *= 2) {
    const int64_t kept = ceil_div(groups, parts);
    const bool fills =
        s.channels * parts >= blocks * device.multiprocessors || kept < 2 * kFewest * kNormThreads;
    const bool last = parts == kLargestCluster;
    if (kept > room(device, last ? 1 : blocks, kClustersOwn, bytes) || !(fills || last)) continue;
    plan.units = plan.at_once = s.channels;
    plan.parts = parts;
    plan.kept = kept;
    return true;
  }
  return false;
}

// All blocks of the device keep slices, one round of these after the other; the wider a slice, the longer the
// pieces of memory that are read. What half of the L2 cache holds is read from there the second time: rounds
// would not pay. Doubles, in which gradients are checked, would not fit the registers.
inline bool fits_slices(NormPlan& plan, const NormCall& call, bool aligned, int64_t bytes,
                        const Device& device) {
  const NormShape& s = call.shape;
  if (!device.cooperative || !aligned || s.channels % kGroup || call.dtype == DType::kFloat64) return false;
  if (s.numel() / kGroup * bytes <= device.l2_cache / 2) return false;
  const int64_t each = beside(call), blocks = each * device.multiprocessors;
  const int64_t turns = room(device, each, kSlicesOwn, bytes) / kNormThreads;
  for (int64_t most = kSliceGroups; most >= 2 && turns > 0; most /= 2) {
    const int64_t rows = kNormThreads / cut_into_slices(plan, s, most);
    const int64_t fewest = ceil_div(s.rows(), rows * turns);
    if (fewest > blocks) continue;
    plan.at_once = std::min(plan.units, blocks / fewest);
    plan.parts = std::max(fewest, std::min(blocks / plan.at_once, s.rows() / (rows * kFewest)));
    plan.kept = ceil_div(ceil_div(s.rows(), plan.parts), rows) * kNormThreads;
    return true;
  }
  return false;
}

// The plan of a call which does both passes. Backward keeps x and dy.
inline NormPlan whole_plan(const NormCall& call, bool aligned, const Device& device) {
  NormPlan plan;
  const int64_t bytes = (call.dy ? 2 : 1) * kGroup * size_of(call.dtype);
  const bool fits =
      call.shape.numel() > 0 && (call.shape.channels_last ? fits_slices(plan, call, aligned, bytes, device)
                                                          : fits_clusters(plan, call, bytes, device));
  return fits ? plan : norm_plan(call.shape);
}

}  // namespace onepass::cuda
