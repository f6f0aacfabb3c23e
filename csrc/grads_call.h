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

// A sum and the gradient that is to be added to it. place: that of the sums.
inline Row sum_row_of(const Place& place, const Tensors& sums, const Tensors& grads, int64_t i,
                      Layout& layout) {
  const Argument sum{place.op, "sums", i}, grad{place.op, "grads", i};
  const View views[] = {view_of(sums[i]), view_of(grads[i])};
  const View &s = views[kParam], &g = views[kGrad];
  if (g.dtype == DType::kOther)
    fail(grad, " has a dtype that is not served, expected torch.float32, float64, bfloat16 or float16");
  if (!place.is_here(s)) fail(sum, " is on another device than sums[0]");
  if (!place.is_here(g)) fail(grad, " is on another device than sums[", i, "]");
  if (!same_sizes(g, s)) fail(grad, " has shape ", Shape{g}, ", expected ", Shape{s}, " as sums[", i, "]");
  if (s.dtype != sum_dtype(g.dtype))
    fail(sum, " has dtype ", name_of(s.dtype), ", expected ", name_of(sum_dtype(g.dtype)), " for ",
         name_of(g.dtype), " gradients");
  if (overlaps_itself(s)) fail(sum, " has several elements at one address: it cannot be written");
  check_storage(sum, s);
  check_storage(grad, g);
  layout = layout_of(views, 2);
  Row row{};
  for (int stream : {kParam, kGrad}) {
    row.data[stream] = views[stream].data;
    row.dtype[stream] = views[stream].dtype;
  }
  row.lie(layout);
  return row;
}

inline Launch sums_launch(const Place& place, const Tensors& sums, const Tensors& grads,
                          std::vector<Layout>& layouts) {
  if (grads.size() != sums.size())
    fail(place.op, ": grads has ", grads.size(), " entries, expected ", sums.size(), " as sums");
  Launch launch;
  launch.clear();
  layouts.resize(sums.size());
  for (size_t i = 0; i < sums.size(); ++i)
    launch.add(sum_row_of(place, sums, grads, static_cast<int64_t>(i), layouts[i]));
  return launch;
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
