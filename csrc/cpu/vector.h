// Vectors of the arithmetic type, between memory and registers: every storage type, whole or in part, through
// the caches or past them. Arithmetic on them is gcc's own; each instruction set makes of it what it has.
//
// 32 bytes where the processor can: longer vectors gain nothing where memory is the limit. Only halves, whose
// conversions cost more than memory does, come sixteen at a time on AVX-512.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../rules/norm.h"
#include "convert.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define ONEPASS_INLINE inline __attribute__((always_inline))
#define ONEPASS_FLAT __attribute__((always_inline))  // of a lambda

namespace onepass {

// The compiler makes a * b + c one instruction, or two where it has a use for a * b elsewhere.
#define ONEPASS_FUSED(T, bytes, instruction)                                             \
  template <>                                                                            \
  struct Fused<T __attribute__((vector_size(bytes)))> {                                  \
    using V = T __attribute__((vector_size(bytes)));                                     \
    static ONEPASS_INLINE V multiply_add(V a, V b, V c) { return instruction(a, b, c); } \
  };
#if defined(__FMA__)
ONEPASS_FUSED(float, 32, _mm256_fmadd_ps)
ONEPASS_FUSED(double, 32, _mm256_fmadd_pd)
#endif
#if defined(__AVX512F__)
ONEPASS_FUSED(float, 64, _mm512_fmadd_ps)
#endif
#undef ONEPASS_FUSED

}  // namespace onepass

namespace onepass::ONEPASS_ISA {

// What an element of this storage type is computed in.
template <class S>
using Arithmetic = std::conditional_t<std::is_same_v<S, double>, double, float>;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 32, kHalfLanes = 16;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kHalfLanes = 8;
#else
constexpr int kVectorBytes = 16, kHalfLanes = 4;
#endif
template <class S>
constexpr int kLanes = sizeof(S) == 2 ? kHalfLanes : kVectorBytes / static_cast<int>(sizeof(S));
template <class S>
constexpr int64_t kLine = 64 / sizeof(S);  // elements of a cache line
template <class S>
constexpr int kLineVectors = kLine<S> / kLanes<S>;

template <class T, int n>
using VectorOf __attribute__((vector_size(n * sizeof(T)))) = T;
template <class S>
using Vector = VectorOf<Arithmetic<S>, kLanes<S>>;
template <class S>
using Integers = VectorOf<std::conditional_t<sizeof(Arithmetic<S>) == 4, int32_t, int64_t>, kLanes<S>>;
using Words = VectorOf<uint32_t, kHalfLanes>;
using Halves = VectorOf<uint16_t, kHalfLanes>;

template <class To, class From>
ONEPASS_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
// body(std::integral_constant<int, k>{}) for k from 0 to n - 1: of constant places in arrays gcc 12 keeps the
// elements in registers, of a loop's not always.
template <int n, class Body>
ONEPASS_INLINE void each(const Body& body) {
  [&]<int... k>(std::integer_sequence<int, k...>)
      ONEPASS_FLAT { (body(std::integral_constant<int, k>{}), ...); }(std::make_integer_sequence<int, n>{});
}
template <class S>
ONEPASS_INLINE Vector<S> broadcast(Arithmetic<S> value) {
  return Vector<S>{} + value;
}

// --- to and from registers --------------------------------------------------------------------------------
// gcc 12 makes five instructions of the first two, which are one.
ONEPASS_INLINE Words widened(Halves halves) {
#if defined(__AVX512F__)
  return bits_as<Words>(_mm512_cvtepu16_epi32(bits_as<__m256i>(halves)));
#elif defined(__AVX2__)
  return bits_as<Words>(_mm256_cvtepu16_epi32(bits_as<__m128i>(halves)));
#else
  return __builtin_convertvector(halves, Words);
#endif
}
ONEPASS_INLINE Halves narrowed(Words words) {
#if defined(__AVX512F__)
  return bits_as<Halves>(_mm512_cvtepi32_epi16(bits_as<__m512i>(words)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32(bits_as<__m256i>(words), bits_as<__m256i>(words));
  return bits_as<Halves>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0b1000)));
#else
  return __builtin_convertvector(words, Halves);
#endif
}
ONEPASS_INLINE Vector<Float16> from_float16(Halves halves) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(bits_as<__m256i>(halves));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(bits_as<__m128i>(halves));
#else
  Vector<Float16> v;
  for (int k = 0; k < kHalfLanes; ++k) {
    float one;
    load(one, Float16{halves[k]});
    v[k] = one;
  }
  return v;
#endif
}
ONEPASS_INLINE Halves to_float16(Vector<Float16> v) {
#if defined(__AVX512F__)
  return bits_as<Halves>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return bits_as<Halves>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  Halves halves;
  for (int k = 0; k < kHalfLanes; ++k) {
    Float16 one;
    store(one, v[k]);
    halves[k] = one.bits;
  }
  return halves;
#endif
}

// Values that are kept in the arithmetic type: coefficients, sums.
template <class S>
ONEPASS_INLINE Vector<S> load_wide(const Arithmetic<S>* from) {
  Vector<S> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class S>
ONEPASS_INLINE void store_wide(Arithmetic<S>* to, Vector<S> v) {
  std::memcpy(to, &v, sizeof v);
}

// Values as they are stored.
template <class S>
ONEPASS_INLINE Vector<S> load_vector(const S* from) {
  if constexpr (sizeof(S) > 2) {
    return load_wide<S>(from);
  } else {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    if constexpr (std::is_same_v<S, Float16>)
      return from_float16(halves);
    else
      return bits_as<Vector<S>>(widened(halves) << 16);
  }
}
template <class S>
ONEPASS_INLINE auto stored(Vector<S> v) {
  if constexpr (sizeof(S) > 2) {
    return v;
  } else if constexpr (std::is_same_v<S, Float16>) {
    return to_float16(v);
  } else {  // as in convert.h
    const Words bits = bits_as<Words>(v), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return narrowed(v != v ? (bits >> 16) | 0x40u : rounded);
  }
}

// past: past the caches, where the processor can. A store that goes through them reads first what it
// overwrites, and a large result is gone from them before it is used. `to` is then a multiple of what is
// stored.
template <class S>
ONEPASS_INLINE void store_vector(S* to, Vector<S> v, [[maybe_unused]] bool past = false) {
  const auto bytes = stored<S>(v);
#if defined(__AVX2__)
  if (past) {
    if constexpr (sizeof bytes == 32)
      return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits_as<__m256i>(bytes));
    else
      return _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits_as<__m128i>(bytes));
  }
#endif
  std::memcpy(to, &bytes, sizeof bytes);
}

// The vectors of a line. On AVX2 a vector of halves is half a vector of memory, so they go there two by two;
// of bfloat16 `in turn`, which is an instruction each (EveryOther, below). exact: they are halves already. A
// NaN that becomes bfloat16 has to have nothing in its lower half, as those have that are made of halves or
// by the processor.
#if defined(__AVX2__) && !defined(__AVX512F__)
template <class S>
constexpr bool kInTurn = std::is_same_v<S, BFloat16>;

template <bool exact>
ONEPASS_INLINE __m256i pair_of(Vector<BFloat16> a, Vector<BFloat16> b, BFloat16) {
  const auto bits = [](Vector<BFloat16> v) ONEPASS_FLAT {
    const Words bits = bits_as<Words>(v);
    return exact ? bits : bits + (0x7fffu + ((bits >> 16) & 1u));
  };
  return _mm256_blend_epi16(bits_as<__m256i>(bits(a) >> 16), bits_as<__m256i>(bits(b)), 0b10101010);
}
template <bool>
ONEPASS_INLINE __m256i pair_of(Vector<Float16> a, Vector<Float16> b, Float16) {
  return _mm256_set_m128i(bits_as<__m128i>(to_float16(b)), bits_as<__m128i>(to_float16(a)));
}
#else
template <class S>
constexpr bool kInTurn = false;
#endif
template <bool exact = false, class S, int n>
ONEPASS_INLINE void store_vectors(S* to, const Vector<S> (&v)[n], bool past) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(S) == 2) {
    auto* at = reinterpret_cast<__m256i*>(to);
    each<n / 2>([&](auto k) ONEPASS_FLAT {
      const __m256i pair = pair_of<exact>(v[2 * k], v[2 * k + 1], S{});
      past ? _mm256_stream_si256(at + k, pair) : _mm256_storeu_si256(at + k, pair);
    });
    return;
  }
#endif
  each<n>([&](auto k) ONEPASS_FLAT { store_vector(to + k * kLanes<S>, v[k], past); });
}

// Asks for the lines of n elements that are a little ahead of these, to be read or written: a prefetcher
// stops where a page ends.
constexpr int64_t kAhead = 2048;  // bytes
template <int64_t n, class S>
ONEPASS_INLINE void ask_ahead(const S* from) {
  for (int64_t i = 0; i < n; i += kLine<S>)
    __builtin_prefetch(reinterpret_cast<const char*>(from + i) + kAhead);
}

// The same of lines that are so many bytes further, into the second cache.
template <int64_t n, class S>
ONEPASS_INLINE void ask_next(const S* from, int64_t bytes) {
  for (int64_t i = 0; i < n; i += kLine<S>)
    __builtin_prefetch(reinterpret_cast<const char*>(from + i) + bytes, 0, 2);
}

// --- parts of a vector ------------------------------------------------------------------------------------
// The lanes that a loop works on. The last n of them are new; the others were there before, are loaded as
// `rest` where that is given, and are stored once more as they were. `fresh`: without the others.
template <class S>
struct Whole {
  using Storage = S;
  static constexpr int64_t n = kLanes<S>;
  static constexpr int64_t loaded() { return kLanes<S>; }
  ONEPASS_INLINE Vector<S> load(const S* from) const { return load_vector(from); }
  ONEPASS_INLINE Vector<S> load(const S* from, Vector<S>) const { return load_vector(from); }
  ONEPASS_INLINE Vector<S> load_wide(const Arithmetic<S>* from) const {
    return ONEPASS_ISA::load_wide<S>(from);
  }
  ONEPASS_INLINE void store(S* to, Vector<S> v, bool past) const { store_vector(to, v, past); }
  ONEPASS_INLINE void store_wide(Arithmetic<S>* to, Vector<S> v) const { ONEPASS_ISA::store_wide<S>(to, v); }
  ONEPASS_INLINE unsigned fresh(unsigned bits) const { return bits; }
  ONEPASS_INLINE Vector<S> fresh(Vector<S> v) const { return v; }
};
// Two vectors of halves in memory, of which this one has every other element: those of even places where it
// is the first, else those of odd ones. Each is then one instruction away from memory, where halves in a row
// are two. For results that are the same in any order, and line by line go back as they came.
template <class S, int second>
struct EveryOther : Whole<S> {
  static constexpr int64_t first(int64_t at) { return at - second * kLanes<S>; }  // of both
  ONEPASS_INLINE Vector<S> load(const S* from) const {
    VectorOf<uint32_t, kLanes<S>> both;
    std::memcpy(&both, from - second * kLanes<S>, sizeof both);
    return bits_as<Vector<S>>(second ? both & 0xffff0000u : both << 16);
  }
  ONEPASS_INLINE Vector<S> load(const S* from, Vector<S>) const { return load(from); }
};
// Of the vectors of a line, number k.
template <class S, int k>
using InLine = std::conditional_t<kInTurn<S>, EveryOther<S, k % 2>, Whole<S>>;

template <class S>
struct Last : Whole<S> {
  int64_t n;
  explicit Last(int64_t n) : n(n) {}
  using Whole<S>::load;
  ONEPASS_INLINE void store(S* to, Vector<S> v, bool) const { store_vector(to, v); }
  ONEPASS_INLINE Vector<S> load(const S* from, Vector<S> rest) const {
    return are_fresh() ? load_vector(from) : rest;
  }
  ONEPASS_INLINE unsigned fresh(unsigned bits) const { return bits >> (kLanes<S> - n); }
  ONEPASS_INLINE Vector<S> fresh(Vector<S> v) const { return are_fresh() ? v : Vector<S>{}; }

 private:
  ONEPASS_INLINE Integers<S> are_fresh() const {
    Integers<S> to_the_end;
    for (int k = 0; k < kLanes<S>; ++k) to_the_end[k] = kLanes<S> - k;
    return to_the_end <= static_cast<int>(n);
  }
};
// The first n, where there are fewer than a vector has: the others are loaded as `rest`, or 0, and not
// stored.
template <class S>
struct Few {
  using Storage = S;
  using T = Arithmetic<S>;
  int64_t n;

  int64_t loaded() const { return n; }
  Vector<S> load(const S* from, Vector<S> rest = Vector<S>{}) const {
    S part[kLanes<S>] = {};
    std::memcpy(part, from, static_cast<size_t>(n) * sizeof(S));
    Vector<S> v = load_vector(part);
    for (int64_t k = n; k < kLanes<S>; ++k) v[k] = rest[k];
    return v;
  }
  Vector<S> load_wide(const T* from) const {
    T part[kLanes<S>] = {};
    std::memcpy(part, from, static_cast<size_t>(n) * sizeof(T));
    return ONEPASS_ISA::load_wide<S>(part);
  }
  void store(S* to, Vector<S> v, bool) const {
    const auto bytes = stored<S>(v);
    std::memcpy(to, &bytes, static_cast<size_t>(n) * sizeof(S));
  }
  void store_wide(T* to, Vector<S> v) const { std::memcpy(to, &v, static_cast<size_t>(n) * sizeof(T)); }
  unsigned fresh(unsigned bits) const { return bits & ((1u << n) - 1); }
  Vector<S> fresh(Vector<S> v) const {
    for (int64_t k = n; k < kLanes<S>; ++k) v[k] = 0;
    return v;
  }
};

// Calls body(i, lanes) for the vectors of a run of n elements, from element `from` on. The last begins early
// enough to be whole, where the run from `earliest` on is long enough.
template <class S, class Body>
ONEPASS_INLINE void for_each_vector(int64_t from, int64_t n, const Body& body, int64_t earliest = 0) {
  int64_t i = from;
  for (; i + kLanes<S> <= n; i += kLanes<S>) body(i, Whole<S>{});
  if (i == n) return;
  if (n - earliest >= kLanes<S>)
    body(n - kLanes<S>, Last<S>{n - i});
  else
    body(i, Few<S>{n - i});
}

// --- across lanes -----------------------------------------------------------------------------------------
// Lanes [first, first + n / 2) of n. In registers: gcc 12 copies halves through memory, in pieces that are
// not there yet when they are read as one.
template <int n, int first, class V>
ONEPASS_INLINE auto half_of(V v) {
  return [&]<int... k>(std::integer_sequence<int, k...>) ONEPASS_FLAT {
    return __builtin_shufflevector(v, v, (first + k)...);
  }(std::make_integer_sequence<int, n / 2>{});
}
template <int n, class V>
ONEPASS_INLINE auto sum_of_lanes(V v) {
  if constexpr (n == 1)
    return v[0];
  else if constexpr (n == 2)
    return v[0] + v[1];
  else
    return sum_of_lanes<n / 2>(half_of<n, 0>(v) + half_of<n, n / 2>(v));
}
// In double: all lanes together are much beside one.
template <class S>
ONEPASS_INLINE double sum_of(Vector<S> v) {
  constexpr int n = kLanes<S>;
  if constexpr (n == 2)
    return static_cast<double>(v[0]) + static_cast<double>(v[1]);
  else {
    using Wide = VectorOf<double, n / 2>;
    return sum_of_lanes<n / 2>(__builtin_convertvector(half_of<n, 0>(v), Wide) +
                               __builtin_convertvector(half_of<n, n / 2>(v), Wide));
  }
}

// Lane k is all ones where bit first + step * k is set, else 0.
template <class S, int first = 0, int step = 1>
ONEPASS_INLINE Integers<S> lanes_of(unsigned bits) {
  Integers<S> each;
  for (int k = 0; k < kLanes<S>; ++k) each[k] = 1 << (first + step * k);
  return ((Integers<S>{} + static_cast<int>(bits)) & each) != 0;
}
// The other way round.
template <class S>
ONEPASS_INLINE unsigned bits_of(Integers<S> lanes) {
#if defined(__AVX512F__)
  if constexpr (sizeof lanes == 64) return _mm512_movepi32_mask(bits_as<__m512i>(lanes));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof lanes == 32 && sizeof(Arithmetic<S>) == 4)
    return static_cast<unsigned>(_mm256_movemask_ps(bits_as<__m256>(lanes)));
  else if constexpr (sizeof lanes == 32)
    return static_cast<unsigned>(_mm256_movemask_pd(bits_as<__m256d>(lanes)));
#endif
  unsigned bits = 0;
  for (int k = 0; k < kLanes<S>; ++k) bits |= (lanes[k] & 1u) << k;
  return bits;
}

// Of the vectors of a line.
template <class S, int n>
ONEPASS_INLINE unsigned bits_of_line(const Integers<S> (&lanes)[n]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (kInTurn<S>) {
    static_assert(n == 4);
    const auto halves = [&](int k) ONEPASS_FLAT {
      return _mm256_blend_epi16(_mm256_srli_epi32(bits_as<__m256i>(lanes[k]), 16),
                                bits_as<__m256i>(lanes[k + 1]), 0b10101010);
    };
    const __m256i bytes = _mm256_packs_epi16(halves(0), halves(2));
    return static_cast<unsigned>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0b11011000)));
  }
#endif
  unsigned bits = 0;
  each<n>([&](auto k) ONEPASS_FLAT { bits |= bits_of<S>(lanes[k]) << (k * kLanes<S>); });
  return bits;
}

}  // namespace onepass::ONEPASS_ISA
