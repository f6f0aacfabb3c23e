// How a normalization is cut into blocks that are reduced side by side.
//
// A block is a part of the images (of the pixels, where channels are innermost) and of the channels. How many
// parts there are depends on the shape alone, and so do the bits. A second pass then goes over all of memory.
// But where some channels lie in long enough runs in each image and all of them fit a cache, these channels
// are a block, whose second pass follows at once: memory is read once. How long is long enough, and what a
// cache holds, is the processor's: pages and prefetchers start anew at each run, and that costs as much as
// the other read where memory is fast. Where groups pay, the second pass of one also has the next one
// fetched, and the first pass of a backward already writes the residual's gradient: memory reads and writes
// at the same time.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "norm_kernels.h"
#include "norm_walk.h"

namespace onepass {

struct Caches {
  int64_t run;    // bytes at least, of a group of channels in an image
  int64_t bytes;  // that a group may take, in all tensors that are read twice
};
constexpr Caches kFastMemory = {32'768, 1 << 20}, kSlowMemory = {12'288, 2 << 20};
// Larger results go past the caches.
constexpr int64_t kBytesPast = 4 << 20;
constexpr int64_t kLeastGroups = 8;  // that threads share
constexpr int64_t kFewPixels = 32, kMostColumns = 8192;
constexpr int64_t kMostParts = 16;
constexpr int64_t kElementsPerPart = 131'072;  // at least
constexpr int64_t kRowsPerPart = 128;          // 16 of them are read twice, and their sums merged in double

// Bytes that are near: what a core has to itself, and on AMD's as much of the third cache as makes 4 MB, for
// there it takes up what leaves the second, and gives it back at twice the speed of memory.
inline int64_t near_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t second = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr int64_t second = 0;
#endif
  if (groups_pay() && !memory_is_slow()) return 4 << 20;
  return second > 0 ? second : 1 << 20;
}

struct NormPlan {
  bool at_once;    // the second pass of a block follows its first
  int64_t parts;   // of the images, or pixels
  int64_t groups;  // of channels
  int64_t group;   // channels of one, at most

  int64_t blocks() const { return parts * groups; }
  int64_t part(int64_t block) const { return block / groups; }
  // tensors: as in `make`.
  Flow flow(const NormCall& call, int64_t tensors) const {
    const NormShape& s = call.shape;
    const bool large = s.numel() * size_of(call.dtype) >= kBytesPast;
    const bool slow = s.channels_last ? memory_is_slow() : groups_pay();
    Flow flow;
    flow.past = large && !(at_once && stores_past_are_slow());
    flow.first = slow && (large || !s.channels_last);
    flow.second = slow && large && s.channels_last;
    flow.residual = slow && (large || !s.channels_last);
    flow.results = slow && !s.channels_last && !flow.past;
    const int64_t bytes = group * s.pixels * size_of(call.dtype);
    if (slow && at_once && 2 * s.images * bytes * tensors <= near_cache()) flow.next = bytes;
    flow.early = slow && at_once && flow.past;
    if (flow.past && s.channels_last && loads_wait()) walk(call, flow);
    return flow;
  }
  // Of a second pass alone.
  static Flow everywhere(const NormCall& call) {
    Flow flow = NormPlan{false, 1, 1, 1}.flow(call, 1);
    flow.past &= !(flow.early && call.dx);  // two results side by side are in each other's way
    flow.early = false;
    return flow;
  }

  // Channels innermost: each pass has one result, and none in its way (norm_walk.h).
  static void walk(const NormCall& call, Flow& flow) {
    const int64_t row = call.shape.channels * size_of(call.dtype);
    const Leads first = Leads::of({call.x, call.dy, call.residual}, {call.dresidual});
    const Leads second = Leads::of({call.x, call.dy, call.residual}, {call.y, call.dx});
    flow.early = call.dresidual;
    flow.early_past = row % kPage != 0 || !first.ahead;
    flow.past = !(second.ahead && second.behind);
    flow.down = flow.past && second.ahead;
  }

  // tensors: how many are read twice.
  static NormPlan make(const NormCall& call, int64_t tensors) {
    const NormShape& s = call.shape;
    const int64_t most = std::clamp<int64_t>(s.numel() / kElementsPerPart, 1, kMostParts);
    if (s.channels_last) return {false, std::clamp<int64_t>(s.rows() / kRowsPerPart, 1, most), 1, s.channels};

    const int64_t run = s.pixels * size_of(call.dtype);
    if (const int64_t group = group_at_once(call, run, tensors))
      return {true, 1, (s.channels + group - 1) / group, group};

    const int64_t parts = std::clamp<int64_t>(s.images / 2, 1, most);  // two images go through one loop
    const int64_t groups = std::clamp<int64_t>(s.channels, 1, most / parts);
    return {false, parts, groups, (s.channels + groups - 1) / groups};
  }

  // So many channels are read once; 0: none are.
  static int64_t group_at_once(const NormCall& call, int64_t run, int64_t tensors) {
    const NormShape& s = call.shape;
    const bool slow = groups_pay();
    const Caches here = slow ? kSlowMemory : kFastMemory;
    const bool alone = !call.mask && !call.residual;
    if (s.numel() == 0 || (!slow && (!alone || run < here.run))) return 0;     // nothing is gained
    const int64_t whole = call.mask ? 8 / std::gcd<int64_t>(8, s.pixels) : 1;  // bytes of a mask
    const int64_t group = ((here.run + run - 1) / run + whole - 1) / whole * whole;
    const bool fits = s.images * group * run * tensors <= here.bytes;
    return fits && s.channels % whole == 0 && s.channels >= kLeastGroups * group ? group : 0;
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
