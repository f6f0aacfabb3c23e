// Runs a kernel over a launch, in one parallel region on torch's threads.
#pragma once
#include "isa.h"

namespace onepass {

void run(const Launch& launch, OptimKernel kernel);

}  // namespace onepass
