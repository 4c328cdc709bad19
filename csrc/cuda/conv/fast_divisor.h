// Division by a number known before the launch: a multiplication and a shift.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace dsr::cuda {

// Exact for dividends below 2^31 (Granlund and Montgomery, "Division by invariant integers using
// multiplication", PLDI 1994, figure 4.1).
struct FastDivisor {
  uint32_t divisor = 1;
  uint32_t multiplier = 1;
  uint32_t shift = 0;

  FastDivisor() = default;
  explicit FastDivisor(uint32_t d) : divisor(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1);
  }

  DSR_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(multiplier) * n) >> 32);
    return (high + n) >> shift;
  }
};

}  // namespace dsr::cuda
