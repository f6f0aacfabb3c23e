// The eager optimizer's way in: a plan that walks param_groups itself and hands the same rows to the same
// driver as the dispatcher op, at a tenth of the cost per tensor.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "common/optim_args.h"

namespace onepass {

namespace py = pybind11;

// One optimizer op over the groups `served` of param_groups.
//
// gather() re-reads what may have moved since the last step: each parameter's memory and gradient, each
// state and step counter. It returns false where something is not as the plan knows it (a parameter, state or
// group was added, removed or replaced; a parameter or state has other memory or another layout; a tensor is
// no plain torch.Tensor): the plan has to be built anew, or the dispatcher op to be taken. It throws where an
// argument is wrong. Either way nothing has been written. run() then does the step.
// hyper: a row of the op's hyperparameters for each served group, one after the other.
class OptimPlan {
 public:
  // param_groups and state are the optimizer's own; state_names name the rule's states in state[p].
  OptimPlan(const std::string& op, bool variant, py::list param_groups, std::vector<int64_t> served, py::dict state,
            const std::vector<std::string>& state_names);
  bool gather(const std::vector<double>& hyper);
  void run(double inv_scale);
  int64_t size() const { return static_cast<int64_t>(launch_.rows.size()); }

 private:
  struct Entry {
    py::object param;
    py::object state;                 // state[param], or null before its first gradient
    std::vector<py::object> values;   // the states, then the step counter
    std::vector<void*> data;          // where parameter, states and step counter were when the plan was built
    int32_t group;
    bool known = false;               // layout and dtypes have been worked out
    Row row{};
    Layout layout;
    std::vector<int64_t> sizes, strides;  // of the parameter
  };

  bool groups_as_built() const;
  bool state_as_built() const;
  bool gather_row(Entry& entry, int64_t index);
  bool as_known(const Entry& entry, const View* views) const;

  const OptimSpec& spec_;
  const bool variant_;
  const int states_;
  py::list param_groups_;
  py::dict state_;
  std::vector<std::pair<int64_t, py::object>> served_;            // index in param_groups, the group
  std::vector<std::pair<py::object, py::object>> state_items_;    // of the whole state, in its order
  std::vector<py::str> names_;                                    // the states', then "step"
  std::vector<Entry> entries_;
  std::vector<PyObject*> touched_;  // parameters of the rows, borrowed from the entries
  std::vector<double> hyper_;
  Launch launch_;
};

}  // namespace onepass
