// Room 2, memory on the CPU: the order in which a thread walks its piece of a launch.
//
// How fast a core reads is a matter of how far its prefetchers run ahead of it, and they do so stream by
// stream: one stream alone leaves a third of the bandwidth unused. So a long piece is walked in strands, from
// several places in turn; while a block of one strand is worked on, memory fetches what is next of the
// others. Nothing is computed otherwise for it: blocks start at multiples of kCutMultiple, as pieces do.
#pragma once
#include <algorithm>

#include "isa.h"

namespace onepass::ONEPASS_ISA {

constexpr int kMaxStrands = 4;
constexpr int64_t kBlock = 512;      // elements of a strand in its turn: 2 KB of a float stream
constexpr int64_t kStrand = 65'536;  // elements that a strand has at least; below, all of it is in a cache

struct Strand {
  Cut at, end;
  bool done() const { return at.row == end.row && at.offset == end.offset; }
};

// What the next row needs, fetched while this one is computed. The processor's own prefetcher needs a few
// lines to see a stream: of small tensors it sees too little too late.
inline void prefetch(const Row& row) {
  constexpr int64_t kLine = 64, kBytes = 2048;
  for (int s = 0; s < kMaxStreams; ++s) {
    const char* data = static_cast<const char*>(row.data[s]);
    const int64_t bytes = row.numel * size_of(row.dtype[s]);
    for (int64_t at = 0; data && at < bytes && at < kBytes; at += kLine)
      __builtin_prefetch(data + at, s != kGrad);
  }
  if (row.step) __builtin_prefetch(row.step, 1);
}

// Calls body(row, first, last) for about `left` elements of a strand, row by row.
template <class Body>
void take_turn(const Launch& launch, Strand& strand, int64_t left, const Body& body) {
  Cut& at = strand.at;
  while (left > 0 && !strand.done()) {
    const Row& row = launch.rows[at.row];
    const int64_t stop = at.row == strand.end.row ? strand.end.offset : row.numel;
    const int64_t room = (left + kCutMultiple - 1) / kCutMultiple * kCutMultiple;
    const int64_t last = std::min(stop, at.offset + room);
    if (last == stop && at.row != strand.end.row && at.row + 1 < static_cast<int64_t>(launch.rows.size()))
      prefetch(launch.rows[at.row + 1]);
    body(row, at.offset, last);
    left -= last - at.offset;
    at = last == row.numel ? Cut{at.row + 1, 0} : Cut{at.row, last};
  }
}

// Cuts [from, to) into strands, `most` of them if they are long enough; returns how many.
inline int cut_strands(const Launch& launch, Cut from, Cut to, int most, Strand* strands) {
  const int64_t begin = launch.begin[from.row] + from.offset, end = launch.begin[to.row] + to.offset;
  const int count = static_cast<int>(std::clamp<int64_t>((end - begin) / kStrand, 1, most));
  for (int k = 0; k < count; ++k) {
    strands[k].at = k == 0 ? from : strands[k - 1].end;
    strands[k].end = k == count - 1 ? to : cut_at(launch.begin, begin + (end - begin) / count * (k + 1));
  }
  return count;
}

// Calls body(strand, row, first, last) for all elements of the piece [from, to), each row's in order.
template <class Body>
void for_each_block(const Launch& launch, Cut from, Cut to, int most, const Body& body) {
  Strand strands[kMaxStrands];
  const int count = cut_strands(launch, from, to, most, strands);
  const int64_t turn = count == 1 ? launch.numel() + 1 : kBlock;
  for (int left = count; left > 0;) {
    left = 0;
    for (int k = 0; k < count; ++k) {
      take_turn(launch, strands[k], turn,
                [&](const Row& row, int64_t first, int64_t last) { body(k, row, first, last); });
      left += !strands[k].done();
    }
  }
}

}  // namespace onepass::ONEPASS_ISA
