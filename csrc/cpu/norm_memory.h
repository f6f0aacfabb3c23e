// Room 2, memory on the CPU: what the kernels of normalizations have in common: coefficients, and how
// elements follow each other in memory.
#pragma once
#include <algorithm>

#include "bits.h"
#include "norm_kernels.h"
#include "norm_walk.h"
#include "vector_exp.h"

namespace onepass::ONEPASS_ISA {

constexpr int kSums = 4;  // side by side where channels lie apart, so that none waits for the addition before

// --- coefficients -----------------------------------------------------------------------------------------
// Of the channels from `at` on, where channels are innermost; or of one channel.
template <class S>
struct Each {
  const Arithmetic<S>* at;
  template <class Lanes>
  ONEPASS_INLINE Vector<S> operator()(int64_t i, Lanes lanes) const {
    return lanes.load_wide(at + i);
  }
};
template <class S>
struct Same {
  Vector<S> value;
  explicit Same(const Arithmetic<S>* at) : value(broadcast<S>(*at)) {}
  template <class Lanes>
  ONEPASS_INLINE Vector<S> operator()(int64_t, Lanes) const {
    return value;
  }
};

// Those of Normalise and of InputGrad (whose scale is the same) for a run that begins with this channel.
template <class S, template <class> class Kind>
struct Coefficients {
  // Where the last vector of a run may begin: before i each has coefficients of its own, in turn.
  static constexpr int64_t earliest(int64_t i) {
    return kInTurn<S> && std::is_same_v<Kind<S>, Each<S>> ? i : 0;
  }
  Kind<S> mean, scale, shift, slope, constant;

  Coefficients(const void* table, int64_t channels, int64_t channel)
      : Coefficients(static_cast<const Arithmetic<S>*>(table) + channel, channels) {}

 private:
  Coefficients(const Arithmetic<S>* table, int64_t channels)
      : mean{table},
        scale{table + channels},
        shift{table + 2 * channels},
        slope{table + 3 * channels},
        constant{table + 4 * channels} {}
};

// Calls body(i, lanes) for the vectors of n elements: those of whole lines, in turn where halves are; the
// rest.
template <class S, class Body>
ONEPASS_INLINE void for_each_in_line(int64_t n, const Body& body) {
  int64_t i = 0;
  if constexpr (kInTurn<S>)
    for (; i + kLine<S> <= n; i += kLine<S>)
      each<kLineVectors<S>>([&](auto k) ONEPASS_FLAT { body(i + k * kLanes<S>, InLine<S, k>{}); });
  for_each_vector<S>(i, n, body);
}

// --- memory -----------------------------------------------------------------------------------------------
template <class S>
inline const S* elements(const void* data, int64_t at) {
  return data ? static_cast<const S*>(data) + at : nullptr;
}
template <class S>
inline S* elements(void* data, int64_t at) {
  return data ? static_cast<S*>(data) + at : nullptr;
}

// Where channels are innermost, results in whole lines may go past the caches.
template <class S>
inline bool in_lines(const NormCall& call, const void* result) {
  return call.shape.channels % kLine<S> == 0 && reinterpret_cast<uintptr_t>(result) % 64 == 0;
}
template <class S>
inline Flow flow_to(const NormCall& call, const void* result, const void* also = nullptr) {
  Flow flow = call.flow;
  flow.past &= in_lines<S>(call, result) && in_lines<S>(call, also);
  flow.down &= flow.past;
  return flow;
}

// Place k of those from 0 on, a multiple of the step from one to the next, of which `last` is the last.
inline int64_t in_direction(const Flow& flow, int64_t k, int64_t last) { return flow.down ? last - k : k; }

// Where channels lie apart, runs begin anywhere: results gather here until there are lines to go past the
// caches. Runs of whole vectors need no such detour.
template <class S>
class Stage {
 public:
  static constexpr int64_t kElements = 4096 / sizeof(S);

  // data: null where this result is not wanted. also: the one that is made with it, and goes the same way.
  explicit Stage(const NormCall& call, void* data, const void* also = nullptr)
      : data_(static_cast<S*>(data)),
        direct_(call.flow.past && call.shape.pixels * static_cast<int64_t>(sizeof(S)) % kVectorBytes == 0 &&
                in_vectors(data) && in_vectors(also)),
        staged_(data && call.flow.past && !direct_) {}

  bool direct() const { return direct_; }  // are results to be stored past the caches as they are made?
  // Calls body(at, n) for pieces of elements [from, to) that there is room for. They end where a line does,
  // in a tensor that begins with one.
  template <class Body>
  void for_each_piece(int64_t from, int64_t to, const Body& body) const {
    if (!staged_) return body(from, to - from);
    for (int64_t at = from, end; at < to; at = end) {
      end = std::min(at / kLine<S> * kLine<S> + kElements, to);
      body(at, end - at);
    }
  }
  // Where results from element `at` + i on are to be written, of a piece that begins at `at`.
  S* at(int64_t at, int64_t i) { return !data_ ? nullptr : (staged_ ? room_ : data_ + at) + i; }
  // When n of them have been: brings them to their place.
  void flush(int64_t at, int64_t n) {
    if (!staged_) return;
    S* to = data_ + at;
    const int64_t misfit =
        -(reinterpret_cast<intptr_t>(to) / static_cast<intptr_t>(sizeof(S))) & (kLine<S> - 1);
    int64_t i = std::min(n, misfit);
    std::memcpy(to, room_, static_cast<size_t>(i) * sizeof(S));
    for (; i + kLine<S> <= n; i += kLine<S>) stream_line(to + i, room_ + i);
    std::memcpy(to + i, room_ + i, static_cast<size_t>(n - i) * sizeof(S));
  }

 private:
  static bool in_vectors(const void* data) { return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0; }
  static ONEPASS_INLINE void stream_line(S* to, const S* from) {
    for (int k = 0; k < kLine<float>; k += kLanes<float>)
      store_vector(reinterpret_cast<float*>(to) + k, load_vector(reinterpret_cast<const float*>(from) + k),
                   true);
  }

  S* data_;
  bool direct_, staged_;
  alignas(64) S room_[kElements];
};

// The runs that elements [at, at + n) consist of where channels lie apart: elements of one channel.
struct Run {
  const NormShape& shape;
  const int64_t n;
  int64_t first = 0, count, channel;  // first: counted from `at`; count: 0 behind the last run

  Run(const NormShape& shape, int64_t at, int64_t n) : shape(shape), n(n) {
    channel = at / shape.pixels % shape.channels;
    count = std::min(n, shape.pixels - at % shape.pixels);
  }
  void next() {
    first += count;
    count = std::min(n - first, shape.pixels);
    channel = channel + 1 == shape.channels ? 0 : channel + 1;
  }
};

// Where channels are innermost, the loop over those of a pixel is short, and while it ends and the next
// begins memory idles. So pixels that are far apart go through one loop: memory runs ahead at several places,
// and coefficients are loaded once for all of them.
//
// Calls body(kRows, first, count, apart) for the pixels [from, to), kRows of them at once: first, first +
// apart ..., then those one further, `count` times. A strand's length is a multiple of `multiple`, and such
// that what they store does not meet (norm_walk.h); bytes: of a row.
template <int kStrands, class Body>
inline void for_each_strand(int64_t from, int64_t to, int64_t multiple, int64_t bytes, const Body& body) {
  const int64_t strand = rows_of_strand((to - from) / kStrands, bytes, kStrands, multiple);
  const int64_t rest = from + kStrands * strand;
  if (strand) body(std::integral_constant<int, kStrands>{}, from, strand, strand);
  if (rest < to) body(std::integral_constant<int, 1>{}, rest, to - rest, int64_t{0});
}

}  // namespace onepass::ONEPASS_ISA
