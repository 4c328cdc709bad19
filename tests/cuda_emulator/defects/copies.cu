// Asynchronous copies that are not there yet, not for others, or not any more.
#include "cases.h"

namespace dsr::emulator::defects {

namespace {

using cuda::copy_async;
using cuda::wait_for_copies;

std::vector<float> counting_floats(int n) {
  std::vector<float> values(n);
  for (int i = 0; i < n; ++i) values[i] = static_cast<float>(i);
  return values;
}

// The tile in reverse: whether every thread saw what the others had copied.
bool reversed(const std::vector<float>& y) {
  for (int i = 0; i < kThreads; ++i) {
    if (y[i] != static_cast<float>(kThreads - 1 - i)) return false;
  }
  return true;
}

__global__ void wait_after_barrier(const float* x, float* y, bool planted) {
  DSR_SHARED(float, tile, [kThreads]);
  const int t = threadIdx.x;
  copy_async(&tile[t], x + t);
  if (!planted) wait_for_copies();
  __syncthreads();
  if (planted) wait_for_copies();
  y[t] = tile[kThreads - 1 - t];
}

bool copy_waited_for_too_late(bool planted) {
  const std::vector<float> x = counting_floats(kThreads);
  std::vector<float> y(kThreads);
  DSR_LAUNCH((wait_after_barrier), 1, kThreads, 0, nullptr, x.data(), y.data(), planted);
  return reversed(y);
}

__global__ void share_copies(const float* x, float* y, bool planted) {
  DSR_SHARED(float, tile, [kThreads]);
  const int t = threadIdx.x;
  copy_async(&tile[t], x + t);
  wait_for_copies();
  if (!planted) __syncthreads();
  y[t] = tile[kThreads - 1 - t];
}

bool copy_read_without_barrier(bool planted) {
  const std::vector<float> x = counting_floats(kThreads);
  std::vector<float> y(kThreads);
  DSR_LAUNCH((share_copies), 1, kThreads, 0, nullptr, x.data(), y.data(), planted);
  return reversed(y);
}

// Two tiles, one after the other, through the same memory: how they differ.
__global__ void copy_over(const float* x /* [2 * kThreads] */, float* y, bool planted) {
  DSR_SHARED(float, tile, [kThreads]);
  const int t = threadIdx.x;
  copy_async(&tile[t], x + t);
  wait_for_copies();
  __syncthreads();
  const float first = tile[kThreads - 1 - t];
  if (!planted) __syncthreads();
  copy_async(&tile[t], x + kThreads + t);
  wait_for_copies();
  __syncthreads();
  y[t] = tile[kThreads - 1 - t] - first;
}

bool copy_begun_too_early(bool planted) {
  const std::vector<float> x = counting_floats(2 * kThreads);
  std::vector<float> y(kThreads);
  DSR_LAUNCH((copy_over), 1, kThreads, 0, nullptr, x.data(), y.data(), planted);
  return y == std::vector<float>(kThreads, kThreads);
}

__global__ void read_own_copy(const float* x, float* y, bool planted) {
  DSR_SHARED(float, tile, [kThreads]);
  const int t = threadIdx.x;
  copy_async(&tile[t], x + kThreads - 1 - t);
  if (!planted) wait_for_copies();
  y[t] = tile[t];
  if (planted) wait_for_copies();
}

bool copy_read_before_the_wait(bool planted) {
  const std::vector<float> x = counting_floats(kThreads);
  std::vector<float> y(kThreads);
  DSR_LAUNCH((read_own_copy), 1, kThreads, 0, nullptr, x.data(), y.data(), planted);
  return reversed(y);
}

__global__ void leave_copies(const float* x, bool planted) {
  DSR_SHARED(float, tile, [2 * kThreads]);
  copy_async(&tile[threadIdx.x], x);
  copy_async(&tile[kThreads + threadIdx.x], x);
  if (!planted) wait_for_copies();
}

bool copy_never_waited_for(bool planted) {
  const float x = 1.0f;
  DSR_LAUNCH((leave_copies), 1, kThreads, 0, nullptr, &x, planted);
  return true;
}

bool copy_from_out_of_bounds(bool planted) {
  const std::vector<float> x = counting_floats(planted ? kThreads - 1 : kThreads);
  std::vector<float> y(kThreads);
  DSR_LAUNCH((share_copies), 1, kThreads, 0, nullptr, x.data(), y.data(), false);
  return planted || reversed(y);
}

}  // namespace

const std::vector<Case> kCopies = {
    {"copy_waited_for_too_late", copy_waited_for_too_late},
    {"copy_read_without_barrier", copy_read_without_barrier},
    {"copy_begun_too_early", copy_begun_too_early},
    {"copy_read_before_the_wait", copy_read_before_the_wait},
    {"copy_never_waited_for", copy_never_waited_for},
    {"copy_from_out_of_bounds", copy_from_out_of_bounds},
};

}  // namespace dsr::emulator::defects
