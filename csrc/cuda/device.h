// What launchers share: the stream, the device they run on, and errors in words.
#pragma once

#include <string>

#include "common/status.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace dsr::cuda {

// Where work goes: a device of this process and one of its streams.
struct Queue {
  int device;
  CUstream_st* stream;
};

// Makes the queue's device current, and the one before again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;
};

// CUDART_VERSION of the toolkit this was built with, such as 13000; 0 under the emulator.
int toolkit_version();

// Devices that can run kernels; where there is none, `reason` says why ("no CUDA device: ...").
int device_count(std::string* reason);

// The error of the launch just made, if any: "<op>: <CUDA's text> (<shapes>)".
Status launched(const char* op, const std::string& shapes);

}  // namespace dsr::cuda
