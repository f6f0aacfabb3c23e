// The CPU kernels of fake quantization. Compiled once per instruction set.
//
// Memory contract, for each element: `forward` reads x once, and writes the output and a bit of the mask;
// `backward` reads the output's gradient and a bit of the mask once, and x where the gradient of scale is
// wanted, and writes the input's gradient.
#include "../rules/fake_quant.h"

#include "bits.h"
#include "fake_quant_kernels.h"

namespace onepass::ONEPASS_ISA {

template <class S>
void forward(const FakeQuantCall& call, const Grid& grid, int64_t from, int64_t n) {
  const S* x = static_cast<const S*>(call.real) + from;
  S* y = static_cast<S*>(call.output) + from;
  const float lowest = call.levels.lowest(grid.zero_point);
  const float highest = call.levels.highest(grid.zero_point);
  BitWriter mask;
  mask.resume(call.mask, from);
  const auto put = [&](int64_t i, auto lanes) ONEPASS_FLAT {
    const Vector<S> v = lanes.load(x + i), steps = steps_of(v, grid.inverse, lowest, highest);
    lanes.store(y + i, steps * grid.scale, false);
    return lanes.fresh(bits_of<S>(is_inside(v, grid.inverse, steps)));
  };
  int64_t i = 0;
  for (; i + kLine<S> <= n; i += kLine<S>) {
    unsigned line = 0;
    for (int k = 0; k < kLine<S>; k += kLanes<S>) line |= put(i + k, Whole<S>{}) << k;
    mask.put<kLine<S>>(line);
  }
  for_each_vector<S>(i, n, [&](int64_t at, auto lanes) ONEPASS_FLAT { mask.put(put(at, lanes), lanes.n); });
  mask.end();
}

// --- gradients --------------------------------------------------------------------------------------------
// In double: what is summed over a group cancels freely.
template <class S>
class Sum {
 public:
  ONEPASS_INLINE void add(Vector<S> v) {
    low_ += __builtin_convertvector((half_of<2 * kHalf, 0>(v)), Doubles);
    high_ += __builtin_convertvector((half_of<2 * kHalf, kHalf>(v)), Doubles);
  }
  double total() const { return sum_of_lanes<kHalf>(low_ + high_); }

 private:
  static constexpr int kHalf = kLanes<S> / 2;
  using Doubles = VectorOf<double, kHalf>;
  Doubles low_{}, high_{};
};

template <bool learned, class S>
double gradients(const FakeQuantCall& call, const Grid& grid, int64_t from, int64_t n) {
  const S* g = static_cast<const S*>(call.grad_output) + from;
  const S* x = static_cast<const S*>(call.real) + (learned ? from : 0);
  S* dx = static_cast<S*>(call.grad_input) + from;
  const float lowest = call.levels.lowest(grid.zero_point);
  const float highest = call.levels.highest(grid.zero_point);
  const StepSize size = StepSize::make(grid.scale);
  Sum<S> sum;
  for_each_vector<S>(0, n, [&](int64_t i, auto lanes) ONEPASS_FLAT {
    const auto inside = lanes_of<S>(read_bits<kLanes<S>>(call.mask, from + i, lanes.loaded()));
    const Vector<S> grad = lanes.load(g + i);
    lanes.store(dx + i, inside ? grad : Vector<S>{}, false);
    if constexpr (learned) {
      const Vector<S> v = lanes.load(x + i), steps = steps_of(v, grid.inverse, lowest, highest);
      sum.add(lanes.fresh(grad * scale_grad(v, steps, inside, size)));
    }
  });
  return sum.total();
}
template <class S>
double backward(const FakeQuantCall& call, const Grid& grid, int64_t from, int64_t n) {
  return call.grad_scale ? gradients<true, S>(call, grid, from, n) : gradients<false, S>(call, grid, from, n);
}

#define EACH_REAL(kernel) {kernel<float>, nullptr, kernel<BFloat16>, kernel<Float16>}

extern const FakeQuantKernels fake_quant_kernels;
constinit const FakeQuantKernels fake_quant_kernels = {EACH_REAL(forward), EACH_REAL(backward)};

}  // namespace onepass::ONEPASS_ISA
