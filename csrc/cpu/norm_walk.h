// How a pass goes through memory whose results go past the caches.
//
// Such a store is long on its way, and on Zen 3 a load from the same place of another page, soon after two of
// them, waits until both have arrived: a pass then takes up to ten times as long (docs/measured-facts.md). So
// strands are to store at different places of their pages. Where rows are whole pages they cannot; then
// results that lie a few lines ahead of what is read are written from the end to the beginning, where they
// lie behind. Allocators place large tensors at one place of their pages, or a few lines from it; what a
// call keeps for itself, such as coefficients, lies apart from its results.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <initializer_list>

namespace onepass {

constexpr int64_t kPage = 4096, kPageLine = 64;
constexpr int64_t kPlaces = kPage / 2;    // where rows are half a page, those of two strands count as one
constexpr int64_t kSoon = 5 * kPageLine;  // behind a store; later than that it has arrived

// Rows of so many bytes that each of the strands takes, when each could have `rows`; less a few, so that
// strands lie apart in their pages by half of what there is for each at least. bytes: 0 where nothing is
// stored past the caches.
inline int64_t rows_of_strand(int64_t rows, int64_t bytes, int64_t strands, int64_t multiple) {
  const int64_t share = kPage / strands, most = rows / multiple * multiple;
  if (bytes % kPage == 0) return most;
  for (int64_t n = most; n > 0 && n > most - kPage / kPageLine * multiple; n -= multiple)
    if (const int64_t place = n * bytes % kPage; place >= share / 2 && place <= share) return n;
  return most;
}

// Bytes from a load to a store, the shorter way round.
inline int64_t lead_of(const void* store, int64_t load) {
  const auto at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(store));
  return ((at - load + kPlaces / 2) & (kPlaces - 1)) - kPlaces / 2;
}

// A place in a page for what is read beside these results, in either direction.
inline int64_t place_apart(std::initializer_list<const void*> stores) {
  for (int64_t place = 0;; place += kPlaces / 8) {
    bool apart = true;  // each store takes three of the eight at most, and a pass has but two
    for (const void* store : stores) apart &= !store || std::abs(lead_of(store, place)) > kSoon;
    if (apart || place == kPlaces - kPlaces / 8) return place;
  }
}

// Where do results lie, beside what is read?
struct Leads {
  bool ahead = false, behind = false;  // by a few lines, in their pages, some of them

  // loads, stores: where they begin; null where there is none. All are walked through side by side.
  static Leads of(std::initializer_list<const void*> loads, std::initializer_list<const void*> stores) {
    Leads all;
    for (const void* store : stores)
      for (const void* load : loads) {
        if (!store || !load) continue;
        const int64_t lead = lead_of(store, static_cast<int64_t>(reinterpret_cast<uintptr_t>(load)));
        all.ahead |= lead >= kPageLine && lead <= kSoon;
        all.behind |= lead <= -kPageLine && lead >= -kSoon;
      }
    return all;
  }
};

}  // namespace onepass
