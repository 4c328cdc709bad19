// Barriers and warp primitives that not all who must come to do come to.
#include "cases.h"

namespace dsr::emulator::defects {

namespace {

__global__ void wait_in_two_places(int* y, bool planted) {
  DSR_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  tile[t] = t;
  if (planted && t < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[t] = tile[kThreads - 1 - t];
}

bool divergent_barrier(bool planted) {
  std::vector<int> y(kThreads);
  DSR_LAUNCH((wait_in_two_places), 1, kThreads, 0, nullptr, y.data(), planted);
  return y[0] == kThreads - 1;
}

__global__ void leave_early(int* y, int n, bool planted) {
  DSR_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  if (planted && t >= n) return;
  tile[t] = t;
  __syncthreads();
  if (t < n) y[t] = tile[t ^ 1];
}

bool barrier_after_return(bool planted) {
  const int n = 50;
  std::vector<int> y(n);
  DSR_LAUNCH((leave_early), 1, kThreads, 0, nullptr, y.data(), n, planted);
  return y[0] == 1;
}

// A sum over the lower half of the warp, in lane 0.
__global__ void add_half_warp(int* y, unsigned mask) {
  const int t = threadIdx.x;
  if (t >= 16) return;
  int sum = t;
  for (int delta = 8; delta > 0; delta /= 2) sum += __shfl_down_sync(mask, sum, delta, 16);
  if (t == 0) *y = sum;
}

__global__ void add_half_warp_while_others_wait(int* y, unsigned mask) {
  const int t = threadIdx.x;
  int sum = t;
  if (t < 16) {
    for (int delta = 8; delta > 0; delta /= 2) sum += __shfl_down_sync(mask, sum, delta, 16);
  }
  __syncthreads();
  if (t == 0) *y = sum;
}

bool full_mask_by_half_warp(bool planted) {
  int y = 0;
  const unsigned mask = planted ? 0xffffffffu : 0x0000ffffu;
  DSR_LAUNCH((add_half_warp_while_others_wait), 1, 32, 0, nullptr, &y, mask);
  return y == 15 * 16 / 2;
}

bool mask_without_the_caller(bool planted) {
  int y = 0;
  DSR_LAUNCH((add_half_warp), 1, 32, 0, nullptr, &y, planted ? 0x00007fffu : 0x0000ffffu);
  return y == 15 * 16 / 2;
}

__global__ void read_lane(int* y, int source) {
  const int t = threadIdx.x;
  if (t >= 16) return;
  y[t] = __shfl_sync(0x0000ffffu, t, source);
}

bool shuffle_from_absent_lane(bool planted) {
  std::vector<int> y(16);
  DSR_LAUNCH((read_lane), 1, 32, 0, nullptr, y.data(), planted ? 20 : 10);
  return y == std::vector<int>(16, 10);
}

__global__ void vote_apart(unsigned* y, bool planted) {
  const int t = threadIdx.x;
  unsigned votes = 0;
  if (planted && t % 2 == 0) {
    votes = __ballot_sync(0xffffffffu, t < 3);
  } else {
    votes = __ballot_sync(0xffffffffu, t < 3);
  }
  y[t] = votes;
}

bool divergent_vote(bool planted) {
  std::vector<unsigned> y(32);
  DSR_LAUNCH((vote_apart), 1, 32, 0, nullptr, y.data(), planted);
  return y == std::vector<unsigned>(32, 7);
}

__global__ void reverse_in_dynamic(int* y) {
  DSR_DYNAMIC_SHARED(int, tile);
  const int t = threadIdx.x;
  tile[t] = t;
  __syncthreads();
  y[t] = tile[kThreads - 1 - t];
}

bool shared_memory_not_asked_for(bool planted) {
  std::vector<int> y(kThreads);
  const int bytes = 100 * 1024;
  if (!planted) {
    cudaFuncSetAttribute(reverse_in_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  }
  DSR_LAUNCH((reverse_in_dynamic), 1, kThreads, bytes, nullptr, y.data());
  return y[0] == kThreads - 1;
}

__global__ void mark(int* y) { y[blockIdx.x] = 1; }

bool empty_grid(bool planted) {
  std::vector<int> y(1);
  DSR_LAUNCH((mark), planted ? 0 : 1, 1, 0, nullptr, y.data());
  return y[0] == 1;
}

}  // namespace

const std::vector<Case> kMeetings = {
    {"divergent_barrier", divergent_barrier},
    {"barrier_after_return", barrier_after_return},
    {"full_mask_by_half_warp", full_mask_by_half_warp},
    {"mask_without_the_caller", mask_without_the_caller},
    {"shuffle_from_absent_lane", shuffle_from_absent_lane},
    {"divergent_vote", divergent_vote},
    {"shared_memory_not_asked_for", shared_memory_not_asked_for},
    {"empty_grid", empty_grid},
};

}  // namespace dsr::emulator::defects
