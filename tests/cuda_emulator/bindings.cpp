// _cuda.emulator: how the emulated threads are ordered, and what ran.
#include <pybind11/pybind11.h>

#include <string>

#include "cuda/conv/fast_divisor.h"
#include "runtime/state.h"

namespace dsr::bindings {

namespace py = pybind11;

namespace {

py::dict kernels() {
  py::dict launches;
  for (auto* record = emulator::KernelRecord::first; record != nullptr; record = record->next) {
    launches[py::str(record->name())] = record->launches;
  }
  return launches;
}

py::dict stats() {
  const emulator::Statistics& counted = emulator::runtime.statistics;
  py::dict result;
  result["switches"] = counted.switches;
  result["threads"] = counted.threads;
  result["blocks"] = counted.blocks;
  result["launches"] = counted.launches;
  return result;
}

}  // namespace

void bind_emulator(py::module_& m) {
  emulator::configure_from_environment();
  py::module_ emulator = m.def_submodule("emulator", "The CPU that stands in for a GPU.");
  emulator.def(
      "configure",
      [](uint64_t seed, const std::string& order, double preempt) {
        emulator::configure(seed, order.c_str(), preempt);
      },
      py::arg("seed") = 1, py::arg("order") = "random", py::arg("preempt") = 0.0,
      "The order of threads and blocks (random, ascending, descending), its seed, and how probably "
      "a thread gives way at an atomic or a fence.");
  emulator.def(
      "quotient",
      [](uint32_t dividend, uint32_t divisor) {
        return cuda::FastDivisor(divisor).quotient(dividend);
      },
      py::arg("dividend"), py::arg("divisor"), "dividend / divisor as the kernels compute it.");
  emulator.def(
      "be_idle", [](bool idle) { emulator::runtime.idle = idle; }, py::arg("idle"),
      "Whether launches are only counted: results are whatever memory held.");
  emulator.def("stats", &stats, "Switches, threads, blocks and launches so far.");
  emulator.def("kernels", &kernels, "Launches of each compiled kernel instance, 0 included.");
}

}  // namespace dsr::bindings
