// The cases as functions that another language can call.
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "../runtime/state.h"
#include "cases.h"

namespace dsr::emulator::defects {

namespace {

// 0: the result was right.
int run_case(const Case& chosen, bool planted) {
  const char* const version = planted ? "planted" : "clean";
  try {
    if (chosen.run(planted)) {
      std::printf("%s %s: right\n", chosen.name, version);
      return 0;
    }
    std::printf("%s %s: wrong result\n", chosen.name, version);
  } catch (const std::runtime_error& error) {
    std::printf("%s %s: %s\n", chosen.name, version, error.what());
  }
  std::fflush(stdout);
  return 1;
}

}  // namespace

}  // namespace dsr::emulator::defects

#define DSR_EXPORT extern "C" __attribute__((visibility("default")))

// All cases without their defects; how many went wrong.
DSR_EXPORT int dsr_run_clean() {
  namespace defects = dsr::emulator::defects;
  dsr::emulator::configure_from_environment();
  int wrong = 0;
  for (const auto* cases : {&defects::kRaces, &defects::kMeetings, &defects::kMemory,
                            &defects::kCopies, &defects::kMatrices, &defects::kPrimitives}) {
    for (const defects::Case& chosen : *cases) wrong += defects::run_case(chosen, false);
  }
  using dsr::emulator::KernelRecord;
  for (auto* record = KernelRecord::first; record != nullptr; record = record->next) {
    std::printf("kernel %s: %llu launches\n", record->name().c_str(), record->launches);
  }
  std::fflush(stdout);
  return wrong;
}

// One case with its defect, in `runs` orders, half of them preempted; how often it went wrong. Then
// without it: a launch that failed must not harm the next. -1: it did, or there is no such case.
DSR_EXPORT int dsr_run_planted(const char* name, int runs) {
  namespace defects = dsr::emulator::defects;
  for (const auto* cases : {&defects::kRaces, &defects::kMeetings, &defects::kMemory,
                            &defects::kCopies, &defects::kMatrices}) {
    for (const defects::Case& chosen : *cases) {
      if (std::strcmp(chosen.name, name) != 0) continue;
      int wrong = 0;
      for (int run = 0; run < runs; ++run) {
        dsr::emulator::configure(static_cast<uint64_t>(run), "random", run % 2 == 0 ? 0 : 0.3);
        wrong += defects::run_case(chosen, true);
      }
      return defects::run_case(chosen, false) == 0 ? wrong : -1;
    }
  }
  return -1;
}
