// How the streams of one parameter lie in memory beside each other.
//
// Streams that are laid out alike and without gaps are walked as one run of numel elements, whatever their
// shape (contiguous, channels_last, transposed). All others are walked as a box: its dimensions in the order
// of the parameter's strides, largest first, neighbours merged where every stream allows it.
#pragma once
#include <algorithm>
#include <vector>

#include "view.h"

namespace onepass {

struct Layout {
  int64_t numel = 0;
  bool flat = true;
  std::vector<int64_t> sizes;                 // of the box, outermost first; empty when flat
  std::vector<std::vector<int64_t>> strides;  // [stream][dimension], in elements
};

// Dimensions larger than 1, by falling stride of the view.
inline std::vector<int> order_of(const View& v) {
  std::vector<int> order;
  for (int d = 0; d < v.dim; ++d)
    if (v.sizes[d] != 1) order.push_back(d);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return v.strides[a] > v.strides[b]; });
  return order;
}

inline bool is_dense(const View& v, const std::vector<int>& order) {
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (v.strides[*d] != expected) return false;
    expected *= v.sizes[*d];
  }
  return true;
}

// Two elements at one address, as torch's in-place ops detect it: a stride of 0.
inline bool overlaps_itself(const View& v) {
  bool repeated = false;
  for (int d = 0; d < v.dim; ++d) {
    if (v.sizes[d] == 0) return false;
    repeated |= v.sizes[d] > 1 && v.strides[d] == 0;
  }
  return repeated;
}

// views[0] is the parameter; all have its sizes.
inline Layout layout_of(const View* views, int count) {
  Layout box;
  box.numel = views[0].numel();
  const std::vector<int> order = order_of(views[0]);
  bool alike = is_dense(views[0], order);
  for (int s = 1; s < count && alike; ++s) alike = same_strides(views[0], views[s]);
  if (alike || box.numel == 0) return box;

  box.flat = false;
  box.strides.resize(count);
  for (int d : order) {
    bool merge = !box.sizes.empty();
    for (int s = 0; s < count && merge; ++s)
      merge = box.strides[s].back() == views[s].strides[d] * views[s].sizes[d];
    if (merge)
      box.sizes.back() *= views[0].sizes[d];
    else
      box.sizes.push_back(views[0].sizes[d]);
    for (int s = 0; s < count; ++s) {
      if (merge)
        box.strides[s].back() = views[s].strides[d];
      else
        box.strides[s].push_back(views[s].strides[d]);
    }
  }
  return box;
}

}  // namespace onepass
