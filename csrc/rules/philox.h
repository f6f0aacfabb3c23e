// Random numbers without a state: Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3,
// SC 2011); and rounding by them. The number of an element follows from the seed, the stream and the
// element's index alone: it is the same for any number of threads, instruction set and device.
#pragma once
#include <cstdint>

#include "rule.h"

namespace onepass {

struct RandomWords {
  uint32_t a, b, c, d;
};

struct Philox {
  uint32_t key0, key1, stream;

  static ONEPASS_HD Philox make(uint64_t seed, uint32_t stream) {
    return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), stream};
  }
  // Of elements 4 * block and the three behind it.
  ONEPASS_HD RandomWords operator()(uint64_t block) const {
    RandomWords w{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), stream, 0};
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const uint64_t even = uint64_t{0xD2511F53u} * w.a, odd = uint64_t{0xCD9E8D57u} * w.c;
      w = {static_cast<uint32_t>(odd >> 32) ^ w.b ^ k0, static_cast<uint32_t>(odd),
           static_cast<uint32_t>(even >> 32) ^ w.d ^ k1, static_cast<uint32_t>(even)};
    }
    return w;
  }
};

// v to a whole number next to it: up with the probability of what lies above the lower one, so that the mean
// is v. 24 bits of the word decide; a whole v stays what it is.
ONEPASS_HD int32_t rounded_by_chance(float v, uint32_t word) {
  const float below = std::floor(v), chance = static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
  return static_cast<int32_t>(below) + (chance < v - below);
}

}  // namespace onepass
