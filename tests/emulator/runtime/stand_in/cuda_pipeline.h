// cp.async is in device_memory.h.
#pragma once
