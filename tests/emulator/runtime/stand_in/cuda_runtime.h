// The real one has device code for nvcc; what a kernel file needs of it is in device.h already.
#pragma once
#include <cuda_runtime_api.h>
