// Small kernels with a right and a wrong version each, to test the emulator with.
#pragma once

#include <vector>

#include "cuda/compat.h"

namespace dsr::emulator::defects {

constexpr int kThreads = 64;  // of a block

// Launches the kernel, with its defect or without; whether the result was right.
struct Case {
  const char* name;
  bool (*run)(bool planted);
};

inline std::vector<int> counting(int n, int start = 0) {
  std::vector<int> values(n);
  for (int i = 0; i < n; ++i) values[i] = start + i;
  return values;
}

extern const std::vector<Case> kRaces;
extern const std::vector<Case> kMeetings;
extern const std::vector<Case> kMemory;
extern const std::vector<Case> kCopies;
extern const std::vector<Case> kMatrices;
extern const std::vector<Case> kPrimitives;

}  // namespace dsr::emulator::defects
