// Quantization on torch's threads: ../common/quant_driver.h. Same bits for any number of them.
#pragma once
#include "../common/quant_driver.h"
