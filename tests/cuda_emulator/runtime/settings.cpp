// The order in which threads and blocks run, and the names of kernels.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "state.h"

namespace dsr::emulator {

void configure(uint64_t seed, const char* order, double preempt) {
  Settings settings;
  settings.seed = seed;
  settings.preempt = preempt;
  if (std::strcmp(order, "random") == 0) {
    settings.order = Order::kRandom;
  } else if (std::strcmp(order, "ascending") == 0) {
    settings.order = Order::kAscending;
  } else if (std::strcmp(order, "descending") == 0) {
    settings.order = Order::kDescending;
  } else {
    throw std::invalid_argument(
        std::string("order: expected random, ascending or descending, got '") + order + "'");
  }
  if (!(preempt >= 0 && preempt < 1)) {
    throw std::invalid_argument("preempt: expected a probability below 1, got " +
                                std::to_string(preempt));
  }
  runtime.settings = settings;
  runtime.random_state = seed;
}

// "... [with auto Kernel = dsr::cuda::gather<float, 4>]" in g++, "Kernel = &dsr::..." in clang++.
std::string KernelRecord::name() const {
  const std::string text = signature;
  const std::string marker = "Kernel = ";
  size_t begin = text.find(marker) + marker.size();
  if (text[begin] == '&') ++begin;
  return text.substr(begin, text.rfind(']') - begin);
}

void configure_from_environment() {
  const char* const seed = std::getenv("DSR_EMULATOR_SEED");
  const char* const order = std::getenv("DSR_EMULATOR_ORDER");
  const char* const preempt = std::getenv("DSR_EMULATOR_PREEMPT");
  configure(seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10),
            order == nullptr ? "random" : order,
            preempt == nullptr ? 0 : std::strtod(preempt, nullptr));
}

}  // namespace dsr::emulator
