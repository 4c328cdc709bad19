// The result of a launcher: kernels know nothing of exceptions or Python.
#pragma once

#include <string>
#include <utility>

namespace dsr {

struct Status {
  std::string message;  // empty: success

  static Status ok() { return {}; }
  static Status error(std::string message) { return {std::move(message)}; }
  bool is_ok() const { return message.empty(); }
};

}  // namespace dsr
