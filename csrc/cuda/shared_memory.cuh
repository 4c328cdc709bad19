// Launches with more dynamic shared memory than the 48 KiB every kernel may have.
#pragma once

#include <atomic>

#include "cuda/compat.h"
#include "cuda/device.h"

namespace dsr::cuda {

// Once per kernel and device: a launch must stay cheap.
template <auto kKernel>
Status allow_shared_bytes(Queue queue, int bytes, const char* op) {
  constexpr int kAlways = 48 << 10, kDevices = 64;
  static std::atomic<int> allowed[kDevices];
  std::atomic<int>& most = allowed[queue.device % kDevices];
  if (bytes <= kAlways || bytes <= most.load()) return Status::ok();
  const cudaError_t error =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) {
    launched(op, "");  // takes the error, which whoever launches next would find
    return Status::error(std::string(op) + ": " + cudaGetErrorString(error) + " (" +
                         std::to_string(bytes) + " bytes of shared memory)");
  }
  most.store(bytes);
  return Status::ok();
}

}  // namespace dsr::cuda
