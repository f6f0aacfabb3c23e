// Masks of a bit an element, the first in the lowest bit of the first byte.
#pragma once
#include "vector.h"

namespace onepass::ONEPASS_ISA {

// Writes bits one behind the other, from the start of a byte on.
class BitWriter {
 public:
  void begin(uint8_t* to) { to_ = to; }
  // From any bit of a mask on, whose byte holds the bits before it.
  ONEPASS_INLINE void resume(uint8_t* mask, int64_t at) {
    to_ = mask + (at >> 3);
    count_ = static_cast<int>(at & 7);
    waiting_ = count_ ? *to_ & ((1u << count_) - 1) : 0;
  }
  // Behind whole bytes: writes the one that is not full yet.
  ONEPASS_INLINE void end() {
    if (count_) *to_ = static_cast<uint8_t>(waiting_);
  }
  // down: the next ones go before these; no byte is half full then.
  template <int64_t n>
  ONEPASS_INLINE void put(unsigned bits, bool down) {
    put<n>(bits);
    if (down) to_ -= 2 * n / 8;
  }
  template <int64_t n>
  ONEPASS_INLINE void put(unsigned bits) {
    static_assert(n % 8 == 0);
    waiting_ |= static_cast<uint64_t>(bits) << count_;
    std::memcpy(to_, &waiting_, n / 8);  // the lowest byte comes first on every machine that is served
    waiting_ >>= n;
    to_ += n / 8;
  }
  // 16 bits at most. Also writes the byte that is not full yet.
  ONEPASS_INLINE void put(unsigned bits, int64_t n) {
    waiting_ |= static_cast<uint64_t>(bits) << count_;
    count_ += static_cast<int>(n);
    const int second = count_ > 8, third = count_ > 16 ? 2 : second;  // or the one before once more
    to_[0] = static_cast<uint8_t>(waiting_);
    to_[second] = static_cast<uint8_t>(waiting_ >> 8 * second);
    to_[third] = static_cast<uint8_t>(waiting_ >> 8 * third);
    to_ += count_ / 8;
    waiting_ >>= count_ / 8 * 8;
    count_ %= 8;
  }

 private:
  uint8_t* to_ = nullptr;
  uint64_t waiting_ = 0;
  int count_ = 0;
};

// n bits, kMost at most, from bit `at` on, and others above them. No byte is read that has none of them.
template <int kMost>
ONEPASS_INLINE unsigned read_bits(const uint8_t* mask, int64_t at, int64_t n) {
  const unsigned within = static_cast<unsigned>(at) % 8, last = (within + static_cast<unsigned>(n) - 1) / 8;
  const uint8_t* from = mask + (at >> 3);
  unsigned bits = from[0];
  if constexpr (kMost > 8)
    bits |= static_cast<unsigned>(from[last < 1 ? last : 1]) << 8 | static_cast<unsigned>(from[last]) << 16;
  if constexpr (kMost <= 8) bits |= static_cast<unsigned>(from[last]) << 8;
  return bits >> within;
}

// The same of a whole vector's n bits, where vectors begin with a byte, or share one evenly.
template <int n>
ONEPASS_INLINE unsigned read_whole_bits(const uint8_t* mask, int64_t at) {
  if constexpr (n < 8) return mask[at >> 3] >> (at & 7);
  unsigned bits = 0;
  std::memcpy(&bits, mask + (at >> 3), n / 8);
  return bits;
}

// All ones in the lanes whose bits are set, from bit `at` on. whole: vectors begin with a byte, or share one
// evenly.
template <bool whole, class Lanes, class S = Lanes::Storage>
ONEPASS_INLINE Integers<S> read_lanes(const uint8_t* mask, int64_t at, Lanes lanes) {
  constexpr int n = kLanes<S>;
  if constexpr (whole) return lanes_of<S>(read_whole_bits<n>(mask, at));
  return lanes_of<S>(read_bits<n>(mask, at, lanes.loaded()));
}
template <bool whole, class S, int second>
ONEPASS_INLINE Integers<S> read_lanes(const uint8_t* mask, int64_t at, EveryOther<S, second> lanes) {
  constexpr int n = 2 * kLanes<S>;
  if constexpr (whole) return lanes_of<S, second, 2>(read_whole_bits<n>(mask, lanes.first(at)));
  return lanes_of<S, second, 2>(read_bits<n>(mask, lanes.first(at), n));
}

}  // namespace onepass::ONEPASS_ISA
