// Loads and stores with cache hints, fences, atomics, cp.async. An access is made in the open, in a function
// that is compiled with the sanitizers.
#pragma once
#include "core.h"

#define EMULATOR_LOAD(name)                                                   \
  template <class T>                                                          \
  T name(const T* from) {                                                     \
    __atomic_fetch_add(&emulator::loaded_bytes, sizeof(T), __ATOMIC_RELAXED); \
    return *from;                                                             \
  }
#define EMULATOR_STORE(name)                                                  \
  template <class T>                                                          \
  void name(T* to, std::common_type_t<T> value) {                             \
    __atomic_fetch_add(&emulator::stored_bytes, sizeof(T), __ATOMIC_RELAXED); \
    *to = value;                                                              \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_LOAD
#undef EMULATOR_STORE

inline void __threadfence() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
inline void __threadfence_block() {}

namespace emulator {

template <size_t bytes>
struct Word;
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint64_t;
};

// Relaxed, as CUDA's atomics are: they order nothing else, unless a fence stands before.
template <class T, class Change>
T atomic(T* p, Change change, const char* what, Where where) {
  check_aligned(p, sizeof(T), what, where);
  using W = typename Word<sizeof(T)>::Type;
  W* const word = reinterpret_cast<W*>(p);
  W before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
  T old, wanted;
  bool written;
  do {
    memcpy(&old, &before, sizeof old);
    wanted = change(old);
    memcpy(&after, &wanted, sizeof after);
    written =
        fenced()
            ? __atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)
            : __atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  } while (!written);
  note_atomic(p);
  return old;
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, expression)                                                             \
  template <class T>                                                                                  \
  T name(T* p, std::common_type_t<T> v, EMULATOR_WHERE) {                                             \
    return emulator::atomic(p, [v](T old) -> T { return static_cast<T>(expression); }, #name, where); \
  }
EMULATOR_ATOMIC(atomicAdd, old + v)
EMULATOR_ATOMIC(atomicSub, old - v)
EMULATOR_ATOMIC(atomicMax, old < v ? v : old)
EMULATOR_ATOMIC(atomicMin, v < old ? v : old)
EMULATOR_ATOMIC(atomicOr, old | v)
EMULATOR_ATOMIC(atomicAnd, old& v)
EMULATOR_ATOMIC(atomicXor, old ^ v)
EMULATOR_ATOMIC(atomicExch, v)
EMULATOR_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef EMULATOR_ATOMIC
template <class T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> wanted, EMULATOR_WHERE) {
  return emulator::atomic(p, [=](T old) -> T { return old == expected ? wanted : old; }, "atomicCAS", where);
}

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0,
                                    EMULATOR_WHERE) {
  emulator::async_copy(to, from, bytes, zeros, where);
}
inline void __pipeline_commit() { emulator::async_commit(); }
inline void __pipeline_wait_prior(size_t groups_left) { emulator::async_wait(groups_left); }
