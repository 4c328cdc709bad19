// Which instruction set runs, and the table of its kernels.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "cpu/conv/kernels.h"

namespace dsr::cpu {

// The best this processor has, or what the environment variable DSR_CPU_ISA names (read once).
Status active_isa(std::string* name);
Status set_isa(const std::string& name);  // for tests and benchmarks
std::vector<std::string> available_isas();

// Kernels of the active instruction set. An invalid DSR_CPU_ISA must have been reported by then.
const KernelTable& kernels();

// Bytes of one core's caches, as the system tells them; common sizes where it does not.
struct Caches {
  int64_t l1, l2;
};
const Caches& caches();

}  // namespace dsr::cpu
