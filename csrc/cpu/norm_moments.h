// Room 2, memory on the CPU: mean and squared deviations of each channel, in one pass.
//
// Memory contract: each element of x is read once, nothing of its size is written.
//
// Squares are summed of deviations from a shift that is close to the mean: the mean of what came before.
// Channels innermost sum a chunk in T, which is few enough for that; channels apart only a few elements a
// lane, then in double. Chunks are merged in double.
#pragma once
#include "norm_memory.h"

namespace onepass::ONEPASS_ISA {

constexpr int64_t kPilot = 16;         // elements of a channel whose mean is the first shift
constexpr int64_t kChunk = 1024;       // elements of a channel in a chunk at least, if there are as many
constexpr int64_t kChunkPixels = 512;  // of a chunk where channels are innermost
constexpr int kMomentStrands = 4;      // places that these are read from in turn
constexpr int kImageStrands = 2;       // images at once, where channels lie apart
// Elements that a lane sums in T. Far from zero, deviations have few bits, and so have their squares, which
// are 0 or 1 modulo 4: where a sum is 16 times the variance, those all round down.
constexpr int kLaneElements = 16;

// The channels of a block while it is read. C: what a chunk is summed in.
template <class T, class C>
struct ChunkSums {
  int64_t channels;
  C *s, *q;  // of the chunk: deviations from the shift, and their squares
  T* shift;
  double *mean, *m2;  // of the chunks before

  ChunkSums(int64_t channels, double* scratch, double* mean, double* m2)
      : channels(channels),
        s(reinterpret_cast<C*>(scratch)),
        q(reinterpret_cast<C*>(scratch + channels)),
        shift(reinterpret_cast<T*>(scratch + 2 * channels)),
        mean(mean),
        m2(m2) {
    for (int64_t c = 0; c < channels; ++c) s[c] = q[c] = 0;
    for (int64_t c = 0; c < channels; ++c) shift[c] = 0;
    for (int64_t c = 0; c < channels; ++c) mean[c] = m2[c] = 0;
  }

  // Of channels [from, to) a chunk of n elements each ends, after `before` elements in other chunks.
  void merge(int64_t from, int64_t to, int64_t before, int64_t n) {
    const double count = static_cast<double>(before), each = 1.0 / static_cast<double>(n);
    const double share = static_cast<double>(n) / static_cast<double>(before + n);
    for (int64_t c = from; c < to; ++c) {
      const double sum = s[c], off = sum * each;
      Moments::merge(mean[c], m2[c], count, share, shift[c] + off, max_or_nan(q[c] - sum * off, 0.0));
      shift[c] = static_cast<T>(mean[c]);
      s[c] = q[c] = 0;
    }
  }
};

template <class V>
ONEPASS_INLINE void add_deviation(V x, V shift, V& s, V& q) {
  const V d = x - shift;
  s += d;
  q = multiply_add(d, d, q);
}

// --- channels apart ---------------------------------------------------------------------------------------
// n elements of each of kRows runs of a channel, `apart` from each other.
template <int kRows, class S, class T>
ONEPASS_INLINE void add_runs(const S* x, int64_t apart, int64_t n, T shift, bool ahead, double& sum,
                             double& squares) {
  constexpr int kOfRow = kSums / kRows;
  Vector<S> s[kSums] = {}, q[kSums] = {};
  const Vector<S> k = broadcast<S>(shift);
  int64_t i = 0;
  for (; i + kOfRow * kLanes<S> <= n; i += kOfRow * kLanes<S>) {
    if (ahead) each<kRows>([&](auto r) ONEPASS_FLAT { ask_ahead<kOfRow * kLanes<S>>(x + r * apart + i); });
    each<kSums>([&](auto j) ONEPASS_FLAT {
      const InLine<S, j> lanes;
      add_deviation(lanes.load(x + j / kOfRow * apart + i + j % kOfRow * kLanes<S>), k, s[j], q[j]);
    });
  }
  each<kRows>([&](auto r) ONEPASS_FLAT {
    for_each_vector<S>(i, n, [&](int64_t at, auto lanes) ONEPASS_FLAT {
      add_deviation(lanes.load(x + r * apart + at, k), k, s[r], q[r]);
    });
  });
  sum += sum_of<S>((s[0] + s[1]) + (s[2] + s[3]));
  squares += sum_of<S>((q[0] + q[1]) + (q[2] + q[3]));
}

template <class S>
inline double mean_of(const S* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    Arithmetic<S> one;
    load(one, x[i]);
    sum += one;
  }
  return sum / static_cast<double>(n);
}

// The channels of a block while its images are read: so many at once, `apart` from each other.
template <class S>
struct PlanarMoments {
  using T = Arithmetic<S>;
  const NormCall& call;
  NormBlock block;
  ChunkSums<T, double> sums;
  int64_t merged = 0, pending = 0;  // elements of each channel: in the moments; summed and not merged

  template <int kRows>
  void add(int64_t image, int64_t apart) {
    const int64_t pixels = call.shape.pixels, stride = apart * call.shape.channels * pixels;
    const S* x = elements<S>(call.x, (image * call.shape.channels + block.begin) * pixels);
    constexpr int64_t kRun = kLaneElements * kSums * kLanes<S> / kRows;
    const bool long_run = pixels >= kChunk;
    for (int64_t c = 0; c < sums.channels; ++c, x += pixels) {
      if (merged + pending == 0) sums.shift[c] = static_cast<T>(mean_of(x, std::min(pixels, kPilot)));
      for (int64_t i = 0; i < pixels; i += kChunk) {
        const int64_t end = std::min(i + kChunk, pixels);
        for (int64_t j = i; j < end; j += kRun)
          add_runs<kRows>(x + j, stride, std::min(kRun, end - j), sums.shift[c], call.flow.first, sums.s[c],
                          sums.q[c]);
        if (long_run) sums.merge(c, c + 1, merged + kRows * i, kRows * (end - i));
      }
    }
    if (long_run)
      merged += kRows * pixels;
    else if ((pending += kRows * pixels) >= kChunk)
      merge();
  }
  void merge() {
    if (pending) sums.merge(0, sums.channels, merged, pending);
    merged += pending;
    pending = 0;
  }
};

template <class S>
void planar_moments(const NormCall& call, NormBlock block, ChunkSums<Arithmetic<S>, double> sums) {
  PlanarMoments<S> moments{call, block, sums};
  for_each_strand<kImageStrands>(block.first, block.last, 1, 0,
                                 [&](auto rows, int64_t image, int64_t count, int64_t apart) {
                                   for (const int64_t end = image + count; image < end; ++image)
                                     moments.template add<decltype(rows)::value>(image, apart);
                                 });
  moments.merge();
}

// --- channels innermost -----------------------------------------------------------------------------------
template <int kRows, class S, class T>
ONEPASS_INLINE void add_rows(const S* x, int64_t stride, bool ahead, const ChunkSums<T, T>& sums) {
  for_each_in_line<S>(sums.channels, [&](int64_t c, auto lanes) ONEPASS_FLAT {
    const Vector<S> shift = lanes.load_wide(sums.shift + c);
    Vector<S> s = lanes.load_wide(sums.s + c), q = lanes.load_wide(sums.q + c);
    for (int r = 0; r < kRows; ++r) {
      if (ahead) ask_ahead<1>(x + r * stride + c);
      add_deviation(lanes.load(x + r * stride + c, shift), shift, s, q);
    }
    lanes.store_wide(sums.s + c, s);
    lanes.store_wide(sums.q + c, q);
  });
}

template <class S, class T>
void interleaved_moments(const NormCall& call, NormBlock block, ChunkSums<T, T> sums) {
  const int64_t channels = sums.channels, pilots = std::min(kPilot, block.last - block.first);
  const bool ahead = call.flow.first;
  for (int64_t p = block.first; p < block.first + pilots; ++p)
    add_rows<1>(elements<S>(call.x, p * channels), 0, false, sums);
  for (int64_t c = 0; c < channels; ++c) {
    sums.shift[c] = sums.s[c] / static_cast<T>(pilots);
    sums.s[c] = sums.q[c] = 0;
  }
  for (int64_t first = block.first; first < block.last; first += kChunkPixels) {
    const int64_t last = std::min(block.last, first + kChunkPixels);
    for_each_strand<kMomentStrands>(
        first, last, 1, 0, [&](auto rows, int64_t p, int64_t count, int64_t apart) {
          for (const int64_t end = p + count; p < end; ++p)
            add_rows<decltype(rows)::value>(elements<S>(call.x, p * channels), apart * channels, ahead, sums);
        });
    sums.merge(0, channels, first - block.first, last - first);
  }
}

template <class S>
void moments(const NormCall& call, NormBlock block, double* scratch, double* mean, double* m2) {
  using T = Arithmetic<S>;
  const int64_t channels = block.end - block.begin;
  if (call.shape.channels_last)
    interleaved_moments<S>(call, block, ChunkSums<T, T>{channels, scratch, mean, m2});
  else
    planar_moments<S>(call, block, ChunkSums<T, double>{channels, scratch, mean, m2});
}

}  // namespace onepass::ONEPASS_ISA
