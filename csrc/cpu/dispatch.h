// Which instruction set runs, and the table of its kernels.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "cpu/kernels.h"

namespace dsr::cpu {

// The best this processor has, or what the environment variable DSR_CPU_ISA names (read once).
Status active_isa(std::string* name);
Status set_isa(const std::string& name);  // for tests and benchmarks
std::vector<std::string> available_isas();

// Kernels of the active instruction set. An invalid DSR_CPU_ISA must have been reported by then.
const KernelTable& kernels();
int64_t tile_elements(int element_size);

}  // namespace dsr::cpu
