// What as_torch.cpp brings to the kernel table of its instruction set.
#pragma once
#include "isa.h"

namespace onepass::ONEPASS_ISA {

template <bool kDecoupled, bool kAmsgrad>
void adam_as_torch(const Launch& launch, Cut from, Cut to);

}  // namespace onepass::ONEPASS_ISA
