#include <string>

#include "cuda/compat.h"
#include "cuda/conv/fused.h"

namespace dsr::cuda {
namespace {

constexpr int kCombineThreads = 128;

// The sum over the block, the same for all its threads, added as a tree.
__device__ __forceinline__ double block_sum(double x, double* sums) {
  const int thread = threadIdx.x;
  sums[thread] = x;
  for (int half = kCombineThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  __syncthreads();
  const double total = sums[0];
  __syncthreads();
  return total;
}

// A block per channel.
__global__ void __launch_bounds__(kCombineThreads)
    combine_sums_kernel(int channels, int parts, const float* __restrict__ partial,
                        float* __restrict__ first, float* __restrict__ second) {
  DSR_SHARED(double, sums, [kCombineThreads]);
  const int channel = blockIdx.x;
  const float* const mine = partial + static_cast<int64_t>(channel) * parts;
  const int64_t numbers = static_cast<int64_t>(channels) * parts;
  double a = 0, b = 0;
  for (int part = threadIdx.x; part < parts; part += kCombineThreads) {
    a += mine[part];
    b += mine[numbers + part];
  }
  a = block_sum(a, sums);
  b = block_sum(b, sums);
  if (threadIdx.x > 0) return;
  first[channel] = static_cast<float>(a);
  second[channel] = static_cast<float>(b);
}

// A block per channel: the mean of the parts' means, then the squares within and between parts. An
// infinite mean stays one; the variance is NaN then.
__global__ void __launch_bounds__(kCombineThreads)
    combine_moments_kernel(int channels, int parts, const float* __restrict__ partial,
                           float* __restrict__ means, float* __restrict__ variances) {
  DSR_SHARED(double, sums, [kCombineThreads]);
  const int channel = blockIdx.x;
  const float* const mine = partial + static_cast<int64_t>(channel) * parts;
  const int64_t numbers = static_cast<int64_t>(channels) * parts;
  double count = 0, sum = 0, squares = 0;
  for (int part = threadIdx.x; part < parts; part += kCombineThreads) {
    const double of_part = mine[2 * numbers + part];
    count += of_part;
    sum += of_part * mine[part];
  }
  count = block_sum(count, sums);
  const double mean = block_sum(sum, sums) / count;
  for (int part = threadIdx.x; part < parts; part += kCombineThreads) {
    const double apart = mine[part] - mean;
    squares += mine[numbers + part] + mine[2 * numbers + part] * apart * apart;
  }
  squares = block_sum(squares, sums);
  if (threadIdx.x > 0) return;
  means[channel] = static_cast<float>(mean);
  variances[channel] = static_cast<float>(squares / count);
}

}  // namespace

Status combine_parts(Queue queue, bool moments, int channels, int parts, const float* partial,
                     float* first, float* second) {
  const DeviceGuard guard(queue.device);
  if (channels == 0) return Status::ok();
  if (moments) {
    DSR_LAUNCH((combine_moments_kernel), dim3(channels), dim3(kCombineThreads), 0, queue.stream,
               channels, parts, partial, first, second);
  } else {
    DSR_LAUNCH((combine_sums_kernel), dim3(channels), dim3(kCombineThreads), 0, queue.stream,
               channels, parts, partial, first, second);
  }
  return launched("sums of channels",
                  std::to_string(channels) + " channels in " + std::to_string(parts) + " parts");
}

}  // namespace dsr::cuda
