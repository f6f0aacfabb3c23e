#include "norm_launch.h"

#include <atomic>
#include <vector>

#include "norm_channels.h"
#include "norm_plan.h"
#include "parallel.h"

namespace onepass {

// What a second pass takes at a time, the last block first: it may still be in a cache.
constexpr int64_t kElementsPerBlock = 65'536;

static int of(Activation act) { return static_cast<int>(act); }
static int of(DType dtype) { return static_cast<int>(dtype); }
static const NormKernels& kernels() { return *current_isa().norm; }

// --- memory of a call -------------------------------------------------------------------------------------
// Grows to the largest call that this thread has made; the threads that help it are given parts of it. It
// lies where the results of the call are not in its way.
enum class For { kBlocks, kTable };
template <For purpose, class T>
static T* room(const NormCall& call, int64_t n) {
  static thread_local std::vector<T> memory;
  constexpr int64_t kOfPage = kPage / sizeof(T);
  if (static_cast<int64_t>(memory.size()) < n + 2 * kOfPage) memory.resize(n + 2 * kOfPage);
  const auto begin = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<T*>((begin + kPage - 1) / kPage * kPage +
                              place_apart({call.y, call.dx, call.dresidual}));
}

// Of each part of a plan: what its kernels scribble on, and two results a channel: mean and m2, or sum and
// dot.
struct PartRoom {
  double* data;
  int64_t channels;

  PartRoom(const NormCall& call, const NormPlan& plan)
      : data(room<For::kBlocks, double>(call, plan.parts * 5 * call.shape.channels)),
        channels(call.shape.channels) {}
  double* scratch(int64_t part, int64_t c) const { return data + part * 5 * channels + 3 * c; }
  double* first(int64_t part, int64_t c) const { return data + (part * 5 + 3) * channels + c; }
  double* second(int64_t part, int64_t c) const { return first(part, c) + channels; }
};

// --- passes -----------------------------------------------------------------------------------------------
// The first: moments of a block, or its sums of gradients.
static void measure(const NormCall& call, const NormPlan& plan, const PartRoom& room, int64_t block) {
  const NormBlock b = plan.block(call.shape, block);
  const int64_t part = plan.part(block);
  kernels().moments[of(call.dtype)](call, b, room.scratch(part, b.begin), room.first(part, b.begin),
                                    room.second(part, b.begin));
}
static void add_grads(const NormCall& call, const NormPlan& plan, const PartRoom& room, const void* table,
                      int64_t block) {
  const NormBlock b = plan.block(call.shape, block);
  const int64_t part = plan.part(block);
  kernels().grad_sums[of(call.act)][of(call.dtype)](call, table, b, room.scratch(part, b.begin),
                                                    room.first(part, b.begin), room.second(part, b.begin));
}

// The moments, or sums, of channels [from, to) over all parts, in the first part's place. Part by part: its
// channels lie side by side.
static void merge_parts(const NormCall& call, const NormPlan& plan, const PartRoom& room, int64_t from,
                        int64_t to) {
  double before = plan.count(call.shape, 0);
  for (int64_t part = 1; part < plan.parts; ++part) {
    const double count = plan.count(call.shape, part), share = count / (before + count);
    const double *mean = room.first(part, 0), *m2 = room.second(part, 0);
    double *all_mean = room.first(0, 0), *all_m2 = room.second(0, 0);
    for (int64_t c = from; c < to; ++c) Moments::merge(all_mean[c], all_m2[c], before, share, mean[c], m2[c]);
    before += count;
  }
}
static void add_parts(const NormPlan& plan, const PartRoom& room, int64_t from, int64_t to) {
  for (int64_t part = 1; part < plan.parts; ++part)
    for (int64_t c = from; c < to; ++c) {
      *room.first(0, c) += *room.first(part, c);
      *room.second(0, c) += *room.second(part, c);
    }
}

static Order order_of(const NormCall& call) {
  const bool in_turn = call.shape.channels_last && kernels().in_turn[of(call.dtype)];
  return {in_turn ? call.shape.channels / 32 * 32 : 0};
}

// Of a channel whose parts are merged: those of all columns that share its statistics.
static Moments merged(const NormCall& call, const PartRoom& room, const Order& order, int64_t c) {
  Moments all;
  const int64_t share = call.shape.share;
  const double count = static_cast<double>(call.shape.count() / share);
  for (int64_t k = c * share; k < (c + 1) * share; ++k)
    all.merge({count, *room.first(0, order(k)), *room.second(0, order(k))});
  return all.finite() ? all : moments_again(call, c);
}

struct GradSums {
  double sum = 0, dot = 0;
};
static GradSums summed(const NormShape& shape, const PartRoom& room, const Order& order, int64_t c,
                       const ChannelStats& stats) {
  GradSums all;
  for (int64_t k = c * shape.share; k < (c + 1) * shape.share; ++k) {
    all.sum += *room.first(0, order(k));
    all.dot += *room.second(0, order(k));
  }
  all.dot = whole_dot(all.dot, all.sum, stats);
  return all;
}

// body(from, to) for ranges of all channels that have statistics, each of which looks at so many parts.
// Ranges end between sixteens, within which columns may be in turn.
template <class Body>
static void each_range(const NormShape& shape, int64_t parts, const Body& body) {
  const int64_t pieces = pieces_of(shape.channels * parts), norms = shape.norms();
  const auto cut = [&](int64_t k) { return k == pieces ? norms : norms * k / pieces / 16 * 16; };
  in_parallel(pieces, [&](int64_t k) { body(cut(k), cut(k + 1)); });
}
template <class Body>
static void each_channel(const NormShape& shape, int64_t parts, const Body& body) {
  each_range(shape, parts, [&](int64_t from, int64_t to) {
    for (int64_t c = from; c < to; ++c) body(c);
  });
}

// The second, over elements [from, to), which are multiples of `unit`.
static void backwards(NormKernels::Apply kernel, const NormCall& call, const void* table, int64_t from,
                      int64_t to, int64_t unit) {
  const int64_t block = std::max<int64_t>(1, kElementsPerBlock / unit) * unit;
  for (int64_t end = to; end > from;) {
    const int64_t begin = from + (end - from - 1) / block * block;
    kernel(call, table, begin, end);
    end = begin;
  }
}
static void everywhere(NormKernels::Apply kernel, const NormCall& call, const void* table) {
  if (call.shape.numel() == 0) return;
  // Whole pixels, and whole bytes of a mask.
  const int64_t unit = call.shape.channels_last ? 8 * call.shape.channels : 64;
  const int64_t numel = call.shape.numel(), pieces = pieces_of(numel);
  const auto cut = [&](int64_t k) { return k == pieces ? numel : numel / unit * k / pieces * unit; };
  in_parallel(pieces, [&](int64_t k) { backwards(kernel, call, table, cut(k), cut(k + 1), unit); });
}
static void over_block(NormKernels::Apply kernel, const NormCall& call, const void* table,
                       const NormBlock& b) {
  const NormShape& s = call.shape;
  for (int64_t image = b.last - 1; image >= b.first; --image)
    kernel(call, table, (image * s.channels + b.begin) * s.pixels, (image * s.channels + b.end) * s.pixels);
}

// first(block), settle(from, to) of channels behind all blocks that they are in, then the second pass.
template <class First, class Settle>
static void two_passes(const NormCall& call, const NormPlan& plan, const void* table,
                       NormKernels::Apply second, const First& first, const Settle& settle) {
  if (plan.at_once) {
    NormCall last = call;
    last.flow.next = 0;
    return in_parallel(plan.blocks(), [&](int64_t k) {
      const NormBlock block = plan.block(call.shape, k);
      first(k);
      settle(block.begin, block.end);
      over_block(second, k + 1 < plan.blocks() ? call : last, table, block);
    });
  }
  in_parallel(plan.blocks(), first);
  each_range(call.shape, plan.parts, settle);
  everywhere(second, call, table);
}

// --- whole calls ------------------------------------------------------------------------------------------
template <class T>
static Channels<T> channels_of(const NormCall& call) {
  return {call, order_of(call), room<For::kTable, T>(call, 5 * call.shape.channels)};
}
static NormKernels::Apply apply_kernel(const NormCall& call) {
  return kernels().apply[of(call.act)][of(call.dtype)];
}
static NormKernels::Apply grad_kernel(const NormCall& call) {
  return kernels().grad_apply[of(call.act)][of(call.dtype)];
}

template <class T>
static void forward(NormCall call, const RunningStats& running, double eps) {
  const NormPlan plan = NormPlan::make(call, 1);
  call.flow = plan.flow(call, 1);
  const PartRoom room(call, plan);
  const auto channels = channels_of<T>(call);
  const double factor = running.factor();
  if (call.shape.numel() == 0)
    return each_channel(call.shape, 1, [&](int64_t c) { channels.set_stats(c, 0, 0, eps); });
  two_passes(
      call, plan, channels.table, apply_kernel(call),
      [&](int64_t block) { measure(call, plan, room, block); },
      [&](int64_t from, int64_t to) {
        merge_parts(call, plan, room, from * call.shape.share, to * call.shape.share);
        for (int64_t c = from; c < to; ++c)
          channels.settle(c, merged(call, room, channels.order, c), running, factor, eps);
      });
}

template <class T>
static void given(const NormCall& call, const ChannelVector& mean, const ChannelVector& variance,
                  double eps) {
  const auto channels = channels_of<T>(call);
  each_channel(call.shape, 1, [&](int64_t c) { channels.set_stats(c, get(mean, c), get(variance, c), eps); });
  everywhere(apply_kernel(call), call, channels.table);
}

template <class T>
static void backward(NormCall call, const ChannelVector& dweight, const ChannelVector& dbias) {
  const NormPlan plan = NormPlan::make(call, 2);
  const bool empty = call.shape.numel() == 0, sums = !call.given || dweight.data || dbias.data;
  if (sums) call.flow = plan.flow(call, 2);
  const PartRoom room(call, plan);
  const auto channels = channels_of<T>(call);
  const auto settle = [&](int64_t from, int64_t to) {
    if (!empty) add_parts(plan, room, from * call.shape.share, to * call.shape.share);
    for (int64_t c = from; c < to; ++c) {
      const GradSums all =
          empty ? GradSums{} : summed(call.shape, room, channels.order, c, channels.stats(c));
      set(dbias, c, all.sum);
      set(dweight, c, all.dot * channels.stats(c).invstd);
      channels.input_grad(c, all.sum, all.dot, static_cast<double>(call.shape.count()));
    }
  };
  each_channel(call.shape, 1, [&](int64_t c) { channels.normalise(c); });
  if (empty) return each_range(call.shape, 1, settle);
  if (!sums) return everywhere(grad_kernel(call), call, channels.table);
  two_passes(
      call, plan, channels.table, grad_kernel(call),
      [&](int64_t block) { add_grads(call, plan, room, channels.table, block); }, settle);
}

// --- in halves --------------------------------------------------------------------------------------------
template <class T>
static void moments(const NormCall& call, T* out) {
  const NormPlan plan = NormPlan::make(call, 1);
  const PartRoom room(call, plan);
  const int64_t channels = call.shape.norms();
  const Order order = order_of(call);
  std::fill_n(out, 3 * channels, T(0));
  out[3 * channels] = static_cast<T>(call.shape.count());
  if (call.shape.numel() == 0) return;
  in_parallel(plan.blocks(), [&](int64_t block) { measure(call, plan, room, block); });
  each_range(call.shape, plan.parts, [&](int64_t from, int64_t to) {
    merge_parts(call, plan, room, from * call.shape.share, to * call.shape.share);
    for (int64_t c = from; c < to; ++c) {
      const Moments all = merged(call, room, order, c);
      out[c] = static_cast<T>(all.mean);
      out[channels + c] = low_part<T>(all.mean);
      out[2 * channels + c] = static_cast<T>(all.m2);
    }
  });
}

template <class T>
static void apply_moments(const NormCall& call, const T* moments, int64_t processes,
                          const RunningStats& running, double eps) {
  const auto channels = channels_of<T>(call);
  const int64_t count = call.shape.norms(), size = 3 * count + 1;
  const double factor = running.factor();
  each_channel(call.shape, processes, [&](int64_t c) {
    Moments all;
    for (int64_t p = 0; p < processes; ++p) {
      const T* its = moments + p * size;
      all.merge({its[3 * count], static_cast<double>(its[c]) + its[count + c], its[2 * count + c]});
    }
    if (all.count > 0)
      channels.settle(c, all, running, factor, eps);
    else
      channels.set_stats(c, 0, 0, eps);
  });
  everywhere(apply_kernel(call), call, channels.table);
}

template <class T>
static void grad_sums(const NormCall& call, T* out, const ChannelVector& dweight,
                      const ChannelVector& dbias) {
  const NormPlan plan = NormPlan::make(call, 2);
  const PartRoom room(call, plan);
  const auto channels = channels_of<T>(call);
  const int64_t count = call.shape.norms();
  each_channel(call.shape, 1, [&](int64_t c) { channels.normalise(c); });
  if (call.shape.numel() > 0)
    in_parallel(plan.blocks(), [&](int64_t block) { add_grads(call, plan, room, channels.table, block); });
  each_range(call.shape, plan.parts, [&](int64_t from, int64_t to) {
    const bool empty = call.shape.numel() == 0;
    if (!empty) add_parts(plan, room, from * call.shape.share, to * call.shape.share);
    for (int64_t c = from; c < to; ++c) {
      const GradSums all =
          empty ? GradSums{} : summed(call.shape, room, channels.order, c, channels.stats(c));
      out[c] = static_cast<T>(all.sum);
      out[count + c] = static_cast<T>(all.dot);
      set(dbias, c, all.sum);
      set(dweight, c, all.dot * channels.stats(c).invstd);
    }
  });
  out[2 * count] = static_cast<T>(call.shape.count());
}

template <class T>
static void apply_grad_sums(const NormCall& call, const T* sums) {
  const auto channels = channels_of<T>(call);
  const int64_t count = call.shape.norms();
  if (call.shape.numel() == 0) return;
  each_channel(call.shape, 1, [&](int64_t c) {
    channels.normalise(c);
    channels.input_grad(c, sums[c], sums[count + c], sums[2 * count]);
  });
  everywhere(grad_kernel(call), call, channels.table);
}

// --- by arithmetic type -----------------------------------------------------------------------------------
static NormCall prepared(NormCall call) {
  call.shape = NormPlan::with_long_rows(call.shape);
  call.flow = NormPlan::everywhere(call);
  return call;
}

// body(T{}) with the arithmetic type of a call.
template <class Body>
static void by_type(const NormCall& call, const Body& body) {
  if (call.dtype == DType::kFloat64) return body(double{});
  body(float{});
}

int64_t norm_scratch(const NormCall&) { return 0; }

void norm_forward(const NormCall& call, const RunningStats& running, double eps) {
  if (running.batches) ++*running.batches;
  by_type(call, [&](auto t) { forward<decltype(t)>(prepared(call), running, eps); });
}

void norm_given(const NormCall& call, const ChannelVector& mean, const ChannelVector& variance, double eps) {
  by_type(call, [&](auto t) { given<decltype(t)>(prepared(call), mean, variance, eps); });
}

void norm_backward(const NormCall& call, const ChannelVector& dweight, const ChannelVector& dbias) {
  by_type(call, [&](auto t) { backward<decltype(t)>(prepared(call), dweight, dbias); });
}

void norm_moments(const NormCall& call, void* out) {
  by_type(call, [&](auto t) { moments(prepared(call), static_cast<decltype(t)*>(out)); });
}

void norm_apply(const NormCall& call, const void* moments, int64_t processes, const RunningStats& running,
                double eps) {
  if (running.batches) ++*running.batches;
  by_type(call, [&](auto t) {
    apply_moments(prepared(call), static_cast<const decltype(t)*>(moments), processes, running, eps);
  });
}

void norm_grad_sums(const NormCall& call, void* sums, const ChannelVector& dweight,
                    const ChannelVector& dbias) {
  by_type(call, [&](auto t) { grad_sums(prepared(call), static_cast<decltype(t)*>(sums), dweight, dbias); });
}

void norm_grad_apply(const NormCall& call, const void* sums) {
  by_type(call, [&](auto t) { apply_grad_sums(prepared(call), static_cast<const decltype(t)*>(sums)); });
}

// --- yardstick --------------------------------------------------------------------------------------------
// to = also = a + b, from two places as copy_probe does it. Turns are short: what one result was made of is
// still in the nearest cache when the other one's turn comes.
static void copy_to_both(const float* a, const float* b, float* to, float* also, int64_t n, bool past) {
  constexpr int64_t kTurn = 256;
  const auto copy = kernels().copy_probe;
  for (int64_t i = 0; i < n / 2; i += kTurn)
    for (const int64_t at : {i, n / 2 + i})
      for (float* result : {to, also}) copy(a + at, b + at, result + at, kTurn, past);
}

static std::atomic<float> sink;  // what is read has to go somewhere

void read_probe(const float* a, int64_t numel) {
  const int64_t pieces = torch::stable::get_num_threads(), unit = 4096;
  const auto cut = [&](int64_t k) { return numel / unit * k / pieces * unit; };
  in_parallel(pieces,
              [&](int64_t k) { sink = kernels().read_probe(a + cut(k), nullptr, cut(k + 1) - cut(k)); });
}

void two_read_probe(const float* a, const float* first, const float* second, float* to, float* also,
                    int64_t numel) {
  const int64_t pieces = torch::stable::get_num_threads(), unit = 4096;
  const auto cut = [&](int64_t k) { return numel / unit * k / pieces * unit; };
  const auto at = [](auto* p, int64_t i) { return p ? p + i : nullptr; };
  in_parallel(pieces, [&](int64_t k) {
    sink = kernels().read_probe(a + cut(k), at(first, cut(k)), cut(k + 1) - cut(k));
  });
  const bool past = numel * static_cast<int64_t>(sizeof(float)) >= kBytesPast;
  in_parallel(pieces, [&](int64_t k) {
    const int64_t from = cut(k), n = cut(k + 1) - from;
    if (also)
      copy_to_both(a + from, second + from, to + from, also + from, n, past);
    else
      kernels().copy_probe(a + from, at(second, from), to + from, n, past);
  });
}

}  // namespace onepass
