// Threads that touch the same memory with nothing between them.
#include "cases.h"

namespace dsr::emulator::defects {

namespace {

__global__ void reverse_tile(const int* x, int* y, bool planted) {
  DSR_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  tile[t] = x[t];
  if (!planted) __syncthreads();
  y[t] = tile[kThreads - 1 - t];
}

bool missing_barrier(bool planted) {
  const std::vector<int> x = counting(kThreads);
  std::vector<int> y(kThreads);
  DSR_LAUNCH((reverse_tile), 1, kThreads, 0, nullptr, x.data(), y.data(), planted);
  for (int i = 0; i < kThreads; ++i) {
    if (y[i] != kThreads - 1 - i) return false;
  }
  return true;
}

constexpr int kRounds = 3;

__global__ void add_reversed_tiles(const int* x, int* y, bool planted) {
  DSR_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  int sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    tile[t] = x[round * kThreads + t];
    __syncthreads();
    sum += tile[kThreads - 1 - t];
    if (!planted) __syncthreads();
  }
  y[t] = sum;
}

bool overwritten_tile(bool planted) {
  const std::vector<int> x = counting(kRounds * kThreads);
  std::vector<int> y(kThreads);
  DSR_LAUNCH((add_reversed_tiles), 1, kThreads, 0, nullptr, x.data(), y.data(), planted);
  for (int i = 0; i < kThreads; ++i) {
    if (y[i] != kRounds * (kThreads - 1 - i) + kThreads * (0 + 1 + 2)) return false;
  }
  return true;
}

__global__ void swap_neighbours(const int* x, int* y, bool planted) {
  DSR_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  tile[t] = x[t];
  if (!planted) __syncwarp();
  y[t] = tile[t ^ 1];
}

bool missing_syncwarp(bool planted) {
  const std::vector<int> x = counting(kThreads);
  std::vector<int> y(kThreads);
  DSR_LAUNCH((swap_neighbours), 1, kThreads, 0, nullptr, x.data(), y.data(), planted);
  for (int i = 0; i < kThreads; ++i) {
    if (y[i] != (i ^ 1)) return false;
  }
  return true;
}

__global__ void reverse_in_global(int* x, bool planted) {
  const int t = threadIdx.x;
  const int other = x[kThreads - 1 - t];
  if (!planted) __syncthreads();
  x[t] = other;
}

bool missing_barrier_for_global(bool planted) {
  std::vector<int> x = counting(kThreads);
  DSR_LAUNCH((reverse_in_global), 1, kThreads, 0, nullptr, x.data(), planted);
  for (int i = 0; i < kThreads; ++i) {
    if (x[i] != kThreads - 1 - i) return false;
  }
  return true;
}

constexpr int kBins = 4;

__global__ void histogram(int* counts /* [kBins] */, bool plain_in_block, bool plain_in_grid) {
  DSR_SHARED(int, bins, [kBins]);
  const int t = threadIdx.x;
  if (t < kBins) bins[t] = 0;
  __syncthreads();
  if (plain_in_block) {
    bins[t % kBins] += 1;
  } else {
    atomicAdd(&bins[t % kBins], 1);
  }
  __syncthreads();
  if (t >= kBins) return;
  if (plain_in_grid) {
    counts[t] += bins[t];
  } else {
    atomicAdd(&counts[t], bins[t]);
  }
}

bool run_histogram(bool plain_in_block, bool plain_in_grid) {
  const int blocks = 3;
  std::vector<int> counts(kBins);
  DSR_LAUNCH((histogram), blocks, kThreads, 0, nullptr, counts.data(), plain_in_block,
             plain_in_grid);
  return counts == std::vector<int>(kBins, blocks * kThreads / kBins);
}

bool plain_add_in_block(bool planted) { return run_histogram(planted, false); }
bool plain_add_between_blocks(bool planted) { return run_histogram(false, planted); }

// What another block wrote, even before its barrier, may not be there yet.
__global__ void read_a_block(int* written /* [blocks] */, int* read /* [blocks] */, bool planted) {
  const int block = blockIdx.x;
  if (threadIdx.x == 0) written[block] = block + 1;
  __syncthreads();
  const int other = planted ? (block + 1) % gridDim.x : block;
  if (threadIdx.x == 1) read[block] = written[other];
}

bool read_of_another_block(bool planted) {
  const int blocks = 4;
  std::vector<int> written(blocks);
  std::vector<int> read(blocks);
  DSR_LAUNCH((read_a_block), blocks, kThreads, 0, nullptr, written.data(), read.data(), planted);
  for (int i = 0; i < blocks; ++i) {
    if (read[i] != (planted ? (i + 1) % blocks : i) + 1) return false;
  }
  return true;
}

// The last block to finish adds up what all of them left.
__global__ void add_in_last_block(int* parts /* [blocks] */, unsigned* ticket, int* total,
                                  bool fence_before, bool fence_after) {
  if (threadIdx.x != 0) return;
  parts[blockIdx.x] = blockIdx.x + 1;
  if (fence_before) __threadfence();
  if (atomicAdd(ticket, 1) != gridDim.x - 1) return;
  if (fence_after) __threadfence();
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += parts[i];
  *total = sum;
}

bool run_last_block(bool fence_before, bool fence_after) {
  std::vector<int> parts(5);
  unsigned ticket = 0;
  int total = 0;
  DSR_LAUNCH((add_in_last_block), 5, 32, 0, nullptr, parts.data(), &ticket, &total, fence_before,
             fence_after);
  return total == 1 + 2 + 3 + 4 + 5;
}

bool missing_fence_before_ticket(bool planted) { return run_last_block(!planted, true); }
bool missing_fence_after_ticket(bool planted) { return run_last_block(true, !planted); }

// Two atomics are not one: between them another thread may take the last place.
__global__ void take_places(int* taken, int places, bool planted) {
  if (planted) {
    if (atomicAdd(taken, 0) < places) atomicAdd(taken, 1);
    return;
  }
  int seen = atomicAdd(taken, 0);
  while (seen < places) {
    const int before = atomicCAS(taken, seen, seen + 1);
    if (before == seen) return;
    seen = before;
  }
}

bool two_atomics_for_one(bool planted) {
  int taken = 0;
  DSR_LAUNCH((take_places), 2, kThreads, 0, nullptr, &taken, 7, planted);
  return taken == 7;
}

}  // namespace

const std::vector<Case> kRaces = {
    {"missing_barrier", missing_barrier},
    {"overwritten_tile", overwritten_tile},
    {"missing_syncwarp", missing_syncwarp},
    {"missing_barrier_for_global", missing_barrier_for_global},
    {"plain_add_in_block", plain_add_in_block},
    {"plain_add_between_blocks", plain_add_between_blocks},
    {"read_of_another_block", read_of_another_block},
    {"missing_fence_before_ticket", missing_fence_before_ticket},
    {"missing_fence_after_ticket", missing_fence_after_ticket},
    {"two_atomics_for_one", two_atomics_for_one},
};

}  // namespace dsr::emulator::defects
