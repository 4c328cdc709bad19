// The kernels of direct.h.
#pragma once

#include "cuda/conv/direct.h"
#include "cuda/conv/vector.cuh"

namespace dsr::cuda {

constexpr int kDirectThreads = 256;

template <class S, class T>
__device__ __forceinline__ S widened(T x) {
  if constexpr (sizeof(S) == 8) {
    return x;
  } else {
    return to_float(x);
  }
}

template <class T, class S>
__device__ __forceinline__ T narrowed(S x) {
  if constexpr (sizeof(S) == 8) {
    return x;
  } else {
    return from_float<T>(x);
  }
}

// A destination pixel of a class, taken apart.
struct Pixel {
  int n, row, col;
};

__device__ __forceinline__ Pixel pixel_at(const Direct& pass, int64_t index) {
  const int64_t line = index / pass.cols;
  return {static_cast<int>(line / pass.rows), static_cast<int>(line % pass.rows),
          static_cast<int>(index % pass.cols)};
}

// The source element that an entry reads for a pixel, 0 outside the image. `source` points at the
// pixel's image and group.
template <class S, class T>
__device__ __forceinline__ S source_element(const Direct& pass, const T* source, const Pixel& at,
                                            const DirectEntry& entry) {
  const int64_t h = static_cast<int64_t>(at.row) * pass.row_step + entry.dh;
  const int64_t w = static_cast<int64_t>(at.col) * pass.col_step + entry.dw;
  if (h < 0 || h >= pass.height || w < 0 || w >= pass.width) return S(0);
  const Strides4& strides = pass.source_strides;
  return widened<S>(source[entry.channel * strides.c + h * strides.h + w * strides.w]);
}

template <class T, class S>
__global__ void __launch_bounds__(kDirectThreads)
    direct_gather_kernel(const __grid_constant__ Direct pass, int64_t pixels, int pixel_blocks,
                         const T* __restrict__ source, const DirectEntry* __restrict__ entries,
                         const int2* __restrict__ bounds, const S* __restrict__ values,
                         const S* __restrict__ bias, T* __restrict__ dest) {
  const int channel = blockIdx.x / pixel_blocks;
  const int64_t index =
      static_cast<int64_t>(blockIdx.x % pixel_blocks) * kDirectThreads + threadIdx.x;
  if (index >= pixels) return;
  const Pixel at = pixel_at(pass, index);
  const int group = channel / pass.dest_channels;
  source += at.n * pass.source_strides.n + group * pass.source_channels * pass.source_strides.c;
  const int2 segment = bounds[pass.first_segment + channel];
  S sum = 0;
  for (int i = segment.x; i < segment.y; ++i) {
    const DirectEntry entry = entries[i];
    sum += values[entry.value] * source_element<S>(pass, source, at, entry);
  }
  if (bias != nullptr) sum += bias[channel];
  const int64_t h = pass.dest_h + static_cast<int64_t>(at.row) * pass.dest_step_h;
  const int64_t w = pass.dest_w + static_cast<int64_t>(at.col) * pass.dest_step_w;
  const Strides4& strides = pass.dest_strides;
  dest[at.n * strides.n + channel * strides.c + h * strides.h + w * strides.w] = narrowed<T>(sum);
}

// One block per non-zero; its threads' sums are added as a tree, the same every time.
template <class T, class S>
__global__ void __launch_bounds__(kDirectThreads, 4)  // at five, ptxas spills for sm_90
    direct_grad_weight_kernel(const __grid_constant__ Direct pass, int64_t pixels,
                              const T* __restrict__ source, const T* __restrict__ grad,
                              const DirectEntry* __restrict__ entries,
                              const int2* __restrict__ bounds, S* __restrict__ grad_values) {
  DSR_SHARED(S, sums, [kDirectThreads]);
  const int entry_index = blockIdx.x;
  int channel = 0;  // the last whose segment starts at or before the entry and is not empty
  for (int end = pass.groups * pass.dest_channels; end - channel > 1;) {
    const int middle = channel + (end - channel) / 2;
    if (bounds[middle].x <= entry_index) {
      channel = middle;
    } else {
      end = middle;
    }
  }
  const DirectEntry entry = entries[entry_index];
  const int group = channel / pass.dest_channels;
  source += group * pass.source_channels * pass.source_strides.c;
  grad += channel * pass.dest_strides.c;
  S sum = 0;
  for (int64_t index = threadIdx.x; index < pixels; index += kDirectThreads) {
    const Pixel at = pixel_at(pass, index);
    const S g = widened<S>(grad[at.n * pass.dest_strides.n + at.row * pass.dest_strides.h +
                                at.col * pass.dest_strides.w]);
    sum += g * source_element<S>(pass, source + at.n * pass.source_strides.n, at, entry);
  }
  const int thread = threadIdx.x;
  sums[thread] = sum;
  for (int half = kDirectThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) grad_values[entry.value] = sums[0];
}

}  // namespace dsr::cuda
