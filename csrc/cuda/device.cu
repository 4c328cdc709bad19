#include "cuda/device.h"

#include <cstring>

#include "cuda/compat.h"

namespace dsr::cuda {

#ifdef DSR_EMULATE_CUDA

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() {}

int toolkit_version() { return 0; }

int device_count(std::string* reason) {
  reason->clear();
  return 1;
}

// The emulator throws where a launch goes wrong.
Status launched(const char*, const std::string&) { return Status::ok(); }

Status copy_to_device(const Queue&, void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return Status::ok();
}

Status copy_to_host(const Queue&, void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return Status::ok();
}

Status synchronize(const Queue&) { return Status::ok(); }

#else

namespace {

Status done(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return Status::ok();
  return Status::error(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current != device) {
    previous_ = current;
    cudaSetDevice(device);
  }
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

int toolkit_version() { return CUDART_VERSION; }

int device_count(std::string* reason) {
  int count = 0;  // stays what it is where there is no driver
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) {
    reason->clear();
    return count;
  }
  int driver = 0;
  const char* why = error == cudaSuccess ? "the driver shows none" : cudaGetErrorString(error);
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    why = "there is no NVIDIA driver";
  *reason = std::string("no CUDA device: ") + why;
  return 0;
}

Status launched(const char* op, const std::string& shapes) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return Status::ok();
  return Status::error(std::string(op) + ": " + cudaGetErrorString(error) + " (" + shapes + ")");
}

Status copy_to_device(const Queue& queue, void* to, const void* from, size_t bytes) {
  const DeviceGuard guard(queue.device);
  return done("copy to the device",
              cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, queue.stream));
}

Status copy_to_host(const Queue& queue, void* to, const void* from, size_t bytes) {
  const DeviceGuard guard(queue.device);
  return done("copy to the host",
              cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, queue.stream));
}

Status synchronize(const Queue& queue) {
  const DeviceGuard guard(queue.device);
  return done("wait for the device", cudaStreamSynchronize(queue.stream));
}

#endif

}  // namespace dsr::cuda
