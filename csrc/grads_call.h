// The ops on gradients alone: their arguments checked and turned into a launch of rows that have no other
// stream. The same for every device.
#pragma once
#include "call.h"

namespace onepass {

inline Row grad_row_of(const Place& place, const Tensors& grads, int64_t i, bool written, Layout& layout) {
  const Argument arg{place.op, "grads", i};
  const View view = view_of(grads[i]);
  if (view.dtype == DType::kOther)
    fail(arg, " has a dtype that is not served, expected torch.float32, float64, bfloat16 or float16");
  if (!place.is_here(view)) fail(arg, " is on another device than grads[0]");
  if (written && overlaps_itself(view))
    fail(arg, " has several elements at one address: it cannot be written");
  check_storage(arg, view);
  const View views[] = {view, view};  // a row's layout is told by its parameter: here the gradient itself
  layout = layout_of(views, 2);
  Row row{};
  row.data[kParam] = row.data[kGrad] = view.data;
  row.dtype[kParam] = row.dtype[kGrad] = view.dtype;
  row.lie(layout);
  return row;
}

// layouts: as long as the launch is used.
inline Launch grads_launch(const Place& place, const Tensors& grads, bool written,
                           std::vector<Layout>& layouts) {
  Launch launch;
  launch.clear();
  layouts.resize(grads.size());
  for (size_t i = 0; i < grads.size(); ++i)
    launch.add(grad_row_of(place, grads, static_cast<int64_t>(i), written, layouts[i]));
  return launch;
}

}  // namespace onepass
