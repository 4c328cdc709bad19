// What the launchers of a rewire share.
#pragma once

#include <string>

#include "cuda/device.h"
#include "cuda/rewire/rewire.h"

namespace dsr::cuda {

// Chunks of all layers: the blocks of a launch.
inline unsigned chunk_total(const int64_t* starts /* [layers + 1] */, int layers) {
  return static_cast<unsigned>(starts[layers]);
}

// The first error of a series of launches.
class Launches {
 public:
  explicit Launches(const RewirePlan& plan) : plan_(plan) {}

  // To be called right after a launch.
  void check(const char* what) {
    if (!status.is_ok()) return;
    int64_t entries = 0;
    for (const RewireLayer& layer : plan_.layers) entries += layer.nnz;
    status = launched(
        (std::string("rewire: ") + what).c_str(),
        std::to_string(plan_.layers.size()) + " layers, " + std::to_string(entries) + " non-zeros");
  }

  Status status;

 private:
  const RewirePlan& plan_;
};

// Waits for the device, then plan.host.findings and plan.host.selections are what it has found.
inline Status fetch_findings(RewirePlan& plan) {
  const Status status = copy_to_host(plan.queue, plan.host.selections, plan.device.selections,
                                     plan.host.findings_bytes());
  return status.is_ok() ? synchronize(plan.queue) : status;
}

}  // namespace dsr::cuda
