// Fake quantization on torch's threads: ../common/fake_quant_driver.h. Same bits for any number of them.
#pragma once
#include "../common/fake_quant_driver.h"
