// What launchers share: the stream, the device they run on, and errors in words.
#pragma once

#include <cstddef>
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

// Copies in the order of the queue. Host memory that is not pinned may be reused at once when
// copied from, and read after synchronize() when copied to.
Status copy_to_device(const Queue& queue, void* to, const void* from, size_t bytes);
Status copy_to_host(const Queue& queue, void* to, const void* from, size_t bytes);

// Waits for all work of the queue, and tells what went wrong in it.
Status synchronize(const Queue& queue);

}  // namespace dsr::cuda
