// The loss scale's next value: what torch's _amp_update_scale_ does, in its order of rounding, and what it
// lacks (patience with single overflows, bounds, counters).
//
//   overflow   tracker <- 0; scale <- backoff_factor * scale, once more than `hysteresis` came in a row
//   none       tracker <- tracker + 1; at growth_interval: scale <- growth_factor * scale, tracker <- 0
//
// A new scale stays within [min_scale, max_scale], and one that is not finite is not taken.
#pragma once
#include <cstdint>

#include "rule.h"

namespace onepass {

struct ScaleRule {
  double growth_factor, backoff_factor, min_scale, max_scale;
  int64_t growth_interval, hysteresis;

  // skipped: two counters of steps that overflowed, in all and in a row.
  ONEPASS_HD void operator()(bool overflow, float& scale, int32_t& tracker, int64_t* skipped) const {
    skipped[0] += overflow;
    skipped[1] = overflow ? skipped[1] + 1 : 0;
    const bool grow = !overflow && tracker + int64_t{1} == growth_interval;
    tracker = overflow || grow ? 0 : tracker + 1;
    if (grow) scale = bounded(scale, growth_factor);
    if (skipped[1] > hysteresis) scale = bounded(scale, backoff_factor);
  }

 private:
  ONEPASS_HD float bounded(float scale, double factor) const {
    const float next = static_cast<float>(scale * factor);
    if (!(std::fabs(next) <= 3.402823466e38f)) return scale;  // inf, NaN
    if (next < min_scale) return static_cast<float>(min_scale);
    return next > max_scale ? static_cast<float>(max_scale) : next;
  }
};

}  // namespace onepass
