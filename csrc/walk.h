// The eager optimizer's way in: a plan that walks param_groups itself and hands the same rows to the same
// driver as the dispatcher op, at a fraction of the cost per tensor.
#pragma once
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <string>
#include <vector>

#include "common/optim_args.h"

namespace onepass {

namespace py = pybind11;

// One optimizer op over the groups `served` of param_groups.
//
// gather() re-reads what may have moved since the last step: each parameter's memory and gradient, each
// state and step counter. It returns false where something is not as the plan knows it (a parameter, state or
// group was added, removed or replaced; a parameter or state has other memory or another layout; a gradient
// has no memory of its own): the plan has to be built anew, or the dispatcher op to be taken. It throws where
// an argument is wrong. Either way nothing has been written. run() then does the step.
// hyper: a row of the op's hyperparameters for each served group, one after the other.
//
// With many small tensors a step is bound by cache misses on torch's own objects, some thirty lines a
// parameter: so the addresses are kept and fetched a few parameters ahead.
class OptimPlan {
 public:
  // param_groups and state are the optimizer's own; state_names name the rule's states in state[p].
  OptimPlan(const std::string& op, bool variant, py::list param_groups, std::vector<int64_t> served, py::dict state,
            const std::vector<std::string>& state_names);
  bool gather(const std::vector<double>& hyper);
  void run(double inv_scale);
  int64_t size() const { return static_cast<int64_t>(launch_.rows.size()); }

 private:
  using Handles = std::vector<torch::stable::Tensor>;

  // One parameter as it was when the plan was built. Tensors are held twice: as Python objects, to see when
  // one is replaced, and as handles, through which memory is read without Python.
  struct Entry {
    PyObject* param;
    const void* impl;               // the tensor behind it
    PyObject* state = nullptr;      // state[param]; null where it had none: then no gradient may come
    std::vector<PyObject*> values;  // of that dict, in its order
    Handles held;                   // parameter, states, step counter
    std::vector<int64_t> shape;     // of the parameter: sizes, then strides
    int32_t device_index = 0;
    int64_t slot = -1;              // its row in the launch, -1 where it had no gradient
    Row row{};
    Layout layout;                  // with a gradient that lies like the parameter
    Layout unlike;                  // with this step's gradient, where it does not
  };

  void know(Entry& entry, const std::vector<py::str>& names);
  void remember_lines(size_t i);
  void list_rows();
  bool groups_as_built() const;
  bool state_as_built() const;
  bool as_built(const Entry& entry, const Row& row) const;
  bool gather_row(Entry& entry, int64_t index);
  std::array<View, kMaxStreams> views_of(const Entry& entry, const View& grad) const;

  const OptimSpec& spec_;
  const bool variant_;
  const int states_;
  py::list param_groups_;
  py::dict state_;
  std::vector<py::object> owned_;                     // keeps what is compared by address alive
  std::vector<std::pair<int64_t, PyObject*>> served_;  // index in param_groups, the group
  std::vector<std::pair<PyObject*, PyObject*>> state_items_;
  std::vector<Entry> entries_;
  std::vector<const void*> lines_;  // kLines addresses for each entry that gather_row will read
  std::vector<double> hyper_;
  Launch launch_;
  py::list touched_;                // the parameters of the launch's rows
  bool relist_ = true;              // a parameter got its first gradient, or lost it
};

}  // namespace onepass
