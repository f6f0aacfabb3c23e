#include "walk.h"

#include "common/torch_view.h"
#include "cpu/launch.h"
#include "grad.h"

namespace onepass {

static py::str interned(const std::string& name) {
  PyObject* s = PyUnicode_InternFromString(name.c_str());
  if (!s) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(s);
}

static PyObject* keep(std::vector<py::object>& owned, py::handle object) {
  owned.push_back(py::reinterpret_borrow<py::object>(object));
  return object.ptr();
}

OptimPlan::OptimPlan(const std::string& op, bool variant, py::list param_groups, std::vector<int64_t> served,
                     py::dict state, const std::vector<std::string>& state_names)
    : spec_(optim_spec(op)),
      variant_(variant),
      states_(spec_.states[variant]),
      param_groups_(param_groups),
      state_(state) {
  if (static_cast<int>(state_names.size()) != states_) fail(op, ": a plan needs ", states_, " state names");
  std::vector<py::str> names;
  for (const std::string& name : state_names) names.push_back(interned(name));
  names.push_back(interned("step"));

  for (auto [key, value] : state) state_items_.emplace_back(keep(owned_, key), keep(owned_, value));
  for (size_t k = 0; k < served.size(); ++k) {
    py::dict group = param_groups[served[k]];
    served_.emplace_back(served[k], keep(owned_, group));
    for (py::handle param : group["params"]) {
      Entry& entry = entries_.emplace_back();
      entry.param = keep(owned_, param);
      entry.impl = reinterpret_cast<const void*>(param.attr("_cdata").cast<uintptr_t>());
      entry.row.group = static_cast<int32_t>(k);
      if (state.contains(param)) entry.state = keep(owned_, state[param]);
    }
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].state) know(entries_[i], names);
    remember_lines(i);
  }
}

// Everything about a parameter and its states that a step need not work out again.
void OptimPlan::know(Entry& entry, const std::vector<py::str>& names) {
  static const py::object& hold =
      *new py::object(py::module_::import("torch").attr("ops").attr("onepass").attr("_hold"));
  const py::dict values = py::reinterpret_borrow<py::dict>(entry.state);
  for (auto item : values) entry.values.push_back(keep(owned_, item.second));
  py::list tensors;
  tensors.append(py::handle(entry.param));
  for (const py::str& name : names) tensors.append(values[name]);
  hold(tensors, reinterpret_cast<int64_t>(&entry.held));

  const int64_t index = &entry - entries_.data();
  const View param = view_of(entry.held[0]), step = view_of(entry.held.back());
  const auto views = views_of(entry, param);
  check_row(spec_, variant_, index, views.data(), entry.row);
  check_step(spec_, index, step);
  entry.shape.assign(param.sizes, param.sizes + param.dim);
  entry.shape.insert(entry.shape.end(), param.strides, param.strides + param.dim);
  entry.layout = layout_of(views.data(), kState + states_);
  entry.row.layout = &entry.layout;
  entry.device_index = param.device_index;
  entry.row.step = step.data;
  entry.row.step_dtype = step.dtype;
}

constexpr size_t kLines = 24, kLinesAhead = 6;

// Hints only: a wrong address costs time, nothing else.
void OptimPlan::remember_lines(size_t i) {
  const Entry& entry = entries_[i];
  std::vector<const void*> lines = {entry.param, entry.state, entry.shape.data(), entry.row.step};
  const auto add = [&](const void* start, std::initializer_list<int> offsets) {
    for (int offset : offsets) lines.push_back(static_cast<const char*>(start) + offset);
  };
  add(entry.held.data(), {0, 64});
  for (const torch::stable::Tensor& t : entry.held) {
    lines.push_back(t.get());
    add(*reinterpret_cast<void* const*>(t.get()), {0, 128});  // the tensor behind the handle: storage, numel
  }
  lines.resize(kLines);
  lines_.insert(lines_.end(), lines.begin(), lines.end());
}

std::array<View, kMaxStreams> OptimPlan::views_of(const Entry& entry, const View& grad) const {
  std::array<View, kMaxStreams> views;
  views[kParam] = view_of(entry.held[0]);
  views[kGrad] = grad;
  for (int s = 0; s < states_; ++s) views[kState + s] = view_of(entry.held[1 + s]);
  return views;
}

bool OptimPlan::groups_as_built() const {
  static const py::str& params_name = *new py::str(interned("params"));
  size_t i = 0;
  for (const auto& [index, group] : served_) {
    if (index >= PyList_GET_SIZE(param_groups_.ptr())) return false;
    if (PyList_GET_ITEM(param_groups_.ptr(), index) != group) return false;
    PyObject* params = PyDict_GetItem(group, params_name.ptr());
    if (!params || !PyList_Check(params)) return false;
    const Py_ssize_t count = PyList_GET_SIZE(params);
    if (i + count > entries_.size()) return false;
    for (Py_ssize_t k = 0; k < count; ++k, ++i)
      if (PyList_GET_ITEM(params, k) != entries_[i].param) return false;
  }
  return i == entries_.size();
}

// The same objects in the same order: cheaper than looking each up, and sees every replacement.
bool OptimPlan::state_as_built() const {
  if (PyDict_GET_SIZE(state_.ptr()) != static_cast<Py_ssize_t>(state_items_.size())) return false;
  Py_ssize_t position = 0;
  PyObject *key, *value;
  for (const auto& [known_key, known_value] : state_items_)
    if (!PyDict_Next(state_.ptr(), &position, &key, &value) || key != known_key || value != known_value) return false;
  return true;
}

// Memory that moved may have been freed, or lie otherwise: whoever builds the plan looks closer.
bool OptimPlan::as_built(const Entry& entry, const Row& row) const {
  if (!entry.state || PyDict_GET_SIZE(entry.state) != static_cast<Py_ssize_t>(entry.values.size())) return false;
  Py_ssize_t position = 0;
  PyObject* value;
  for (PyObject* known : entry.values)
    if (!PyDict_Next(entry.state, &position, nullptr, &value) || value != known) return false;

  if (entry.held[0].data_ptr() != row.data[kParam]) return false;
  for (int s = 0; s < states_; ++s)
    if (entry.held[1 + s].data_ptr() != row.data[kState + s]) return false;
  if (entry.held.back().data_ptr() != row.step) return false;
  const auto sizes = entry.held[0].sizes(), strides = entry.held[0].strides();
  return sizes.size() + strides.size() == entry.shape.size() &&
         std::equal(sizes.begin(), sizes.end(), entry.shape.begin()) &&
         std::equal(strides.begin(), strides.end(), entry.shape.begin() + sizes.size());
}

bool OptimPlan::gather_row(Entry& entry, int64_t index) {
  const AtenTensorHandle grad = grad_of()(entry.impl);
  bool defined = false;
  if (aoti_torch_is_defined(grad, &defined)) return false;
  if (defined != (entry.slot >= 0)) {
    entry.slot = defined ? 0 : -1;
    relist_ = true;
  }
  if (!defined) return true;

  Row& row = relist_ ? entry.row : launch_.rows[entry.slot];
  if (!as_built(entry, row)) return false;
  View param, view;
  param.dim = static_cast<int32_t>(entry.shape.size() / 2);
  param.sizes = entry.shape.data();
  param.strides = param.sizes + param.dim;
  param.dtype = row.dtype[kParam];
  param.device_index = entry.device_index;
  if (!view_of(grad, view)) return false;
  check_stream(spec_, kGrad, index, view, param);

  row.data[kGrad] = view.data;
  row.layout = &entry.layout;
  if (!entry.layout.flat || !same_strides(view, param)) {
    entry.unlike = layout_of(views_of(entry, view).data(), kState + states_);
    row.layout = &entry.unlike;
  }
  row.t = read_step(row.step, row.step_dtype) + 1;
  return true;
}

void OptimPlan::list_rows() {
  launch_.clear();
  touched_ = py::list();
  for (Entry& entry : entries_) {
    if (entry.slot < 0) continue;
    entry.slot = size();
    launch_.add(entry.row);
    touched_.append(py::handle(entry.param));
  }
  relist_ = false;
}

bool OptimPlan::gather(const std::vector<double>& hyper) {
  if (hyper.size() != served_.size() * spec_.columns)
    fail(spec_.op, ": hyper has ", hyper.size(), " values, expected ", spec_.columns, " for each of ", served_.size(),
         " groups");
  for (size_t g = 0; g < served_.size(); ++g) spec_.check(spec_, hyper.data() + g * spec_.columns, served_[g].first);
  hyper_ = hyper;
  if (!groups_as_built() || !state_as_built()) return false;
  do {
    if (relist_) list_rows();
    for (size_t i = 0; i < entries_.size(); ++i) {
      const void* const* ahead = lines_.data() + std::min(i + kLinesAhead, entries_.size() - 1) * kLines;
      for (size_t k = 0; k < kLines; ++k) __builtin_prefetch(ahead[k]);
      if (!gather_row(entries_[i], static_cast<int64_t>(i))) return false;
    }
  } while (relist_);
  return true;
}

void OptimPlan::run(double inv_scale) {
  if (launch_.rows.empty()) return;
  // A kernel writes behind autograd's back: say so, that a backward through the old values raises.
  static const py::object& increment_version =
      *new py::object(py::module_::import("torch.autograd.graph").attr("increment_version"));
  increment_version(touched_);
  launch_.hyper = hyper_.data();
  launch_.hyper_columns = spec_.columns;
  launch_.inv_scale = inv_scale;
  py::gil_scoped_release unlocked;
  onepass::run(launch_, current_isa().kernels->optim[spec_.kernel][variant_]);
}

}  // namespace onepass
