// How a normalization is cut into blocks that are reduced side by side.
//
// A block is a part of the images (of the pixels, where channels are innermost) and of the channels. How many
// parts there are depends on the shape alone, and so do the bits. A second pass then goes over all of memory.
// But where the pixels of a channel are a long run in each image and all of them fit a cache, a block is a
// channel, and its second pass follows at once: memory is read once. (Shorter runs, a few channels at a time,
// cost as much by pages and prefetchers that start anew as they save.)
#pragma once
#include <algorithm>

#include "norm_kernels.h"

namespace onepass {

constexpr int64_t kLongRun = 32'768;      // bytes
constexpr int64_t kCacheBytes = 1 << 20;  // that a channel may take, in all tensors that are read twice
constexpr int64_t kFewPixels = 32, kMostColumns = 8192;
constexpr int64_t kMostParts = 16;
constexpr int64_t kElementsPerPart = 131'072;  // at least
constexpr int64_t kRowsPerPart = 16;           // each has five numbers a channel of its own

struct NormPlan {
  bool by_channel;
  int64_t parts;   // of the images, or pixels
  int64_t groups;  // of channels
  int64_t group;   // channels of one, at most

  int64_t blocks() const { return parts * groups; }
  int64_t part(int64_t block) const { return block / groups; }

  // tensors: how many are read twice.
  static NormPlan make(const NormCall& call, int64_t tensors) {
    const NormShape& s = call.shape;
    const int64_t most = std::clamp<int64_t>(s.numel() / kElementsPerPart, 1, kMostParts);
    if (s.channels_last) return {false, std::clamp<int64_t>(s.rows() / kRowsPerPart, 1, most), 1, s.channels};

    const int64_t run = s.pixels * size_of(call.dtype);
    const bool alone = !call.mask && !call.residual;  // with more to read at once, nothing is gained
    if (alone && run >= kLongRun && s.images * run * tensors <= kCacheBytes) return {true, 1, s.channels, 1};

    const int64_t parts = std::clamp<int64_t>(s.images / 2, 1, most);  // two images go through one loop
    const int64_t groups = std::clamp<int64_t>(s.channels, 1, most / parts);
    return {false, parts, groups, (s.channels + groups - 1) / groups};
  }

  // A handful of pixels is no run. Where channels lie apart, an image then is one row: its pixels are
  // channels that have everything in common.
  static NormShape with_long_rows(const NormShape& s) {
    const bool few = !s.channels_last && s.pixels > 1 && s.pixels < kFewPixels;
    if (!few || s.channels * s.pixels > kMostColumns) return s;
    return {s.images, s.channels * s.pixels, 1, true, s.pixels};
  }

  NormBlock block(const NormShape& s, int64_t k) const {
    const int64_t all = s.channels_last ? s.rows() : s.images, begin = k % groups * group;
    return {all * part(k) / parts, all * (part(k) + 1) / parts, std::min(begin, s.channels),
            std::min(begin + group, s.channels)};
  }
  // Elements of a channel in a part.
  double count(const NormShape& s, int64_t part) const {
    const int64_t all = s.channels_last ? s.rows() : s.images;
    const int64_t rows = all * (part + 1) / parts - all * part / parts;
    return static_cast<double>(s.channels_last ? rows : rows * s.pixels);
  }
};

}  // namespace onepass
