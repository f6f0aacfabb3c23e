// The optimizers' CPU kernels in torch's order of rounding. A file of its own because it is compiled without
// contraction, see setup.py.
#include "as_torch.h"

#include "../rules/adam_as_torch.h"
#include "multi_tensor.h"

namespace onepass::ONEPASS_ISA {

// What torch's kernel takes together: 8 floats with AVX2, and with AVX-512 at a tensor's end, where its
// compiler made a loop over 8 of what 16 leave.
constexpr int64_t kTorchVector = 8;

// As multi_tensor, with another rule for the elements behind a row's last full vector of torch's.
template <bool kDecoupled, bool kAmsgrad>
void adam_as_torch(const Launch& launch, Cut from, Cut to) {
  using Vectors = Step<AdamAsTorch<float, kDecoupled, kAmsgrad, /*kTail=*/false>>;
  using Tails = Step<AdamAsTorch<float, kDecoupled, kAmsgrad, /*kTail=*/true>>;
  Coefficients<Vectors> vectors[kMaxStrands];
  Coefficients<Tails> tails[kMaxStrands];
  const Scaling scaling = scaling_of(launch);
  const int strands = strands_of(launch, Vectors::kStates);
  for_each_block(launch, from, to, strands, [&](int k, const Row& row, int64_t first, int64_t last) {
    const int64_t tail = row.numel - row.numel % kTorchVector;
    if (first < tail)
      update_row(vectors[k].at(launch, scaling, row), row, launch, first, std::min(last, tail));
    if (last > tail) update_row(tails[k].at(launch, scaling, row), row, launch, std::max(first, tail), last);
    if (first == 0) advance(row);
  });
}

template void adam_as_torch<false, false>(const Launch&, Cut, Cut);
template void adam_as_torch<false, true>(const Launch&, Cut, Cut);
template void adam_as_torch<true, false>(const Launch&, Cut, Cut);
template void adam_as_torch<true, true>(const Launch&, Cut, Cut);

}  // namespace onepass::ONEPASS_ISA
