// Divisions of the planner, which rounds towards minus and plus infinity.
#pragma once

#include <cmath>
#include <cstdint>

namespace dsr::cuda {

// b > 0.
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// The least integer that is not below a / b, b > 0, of the quotient before it is rounded.
inline double ceil_div(double a, double b) {
  const double quotient = (a - std::fmod(a, b)) / b;
  return std::nearbyint(quotient) + (std::fmod(a, b) > 0 ? 1.0 : 0.0);
}

}  // namespace dsr::cuda
