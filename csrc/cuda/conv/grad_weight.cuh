// The kernel of grad_weight.h.
//
// A thread block has a block of source channels, row_block output channels and a split of the
// positions. It keeps one slab in shared memory, tile after tile of its split, and its output
// channels take turns on it, while its last warps fill the next tile's slab. A warp holds a tile of
// one channel's gradient in registers, kUnits * kVector per lane, and every non-zero of the channel
// costs as many multiply-adds, all of whose other operands are slab vectors. Eight non-zeros yield
// eight sums per lane:
//
//     lane 0    s0 s1 s2 s3 s4 s5 s6 s7        halves change places with the lane 16 away,
//     lane 1    s0 s1 s2 s3 s4 s5 s6 s7   ->   quarters with the one 8 away, and so on: 9 shuffles,
//     ...                                      and lane 4 k has the warp's sum for non-zero k.
//
// It is added to the split's partial sum, which no other thread touches; the splits are summed in a
// fixed order by a second kernel. No atomics: the same bits every time.
#pragma once

#include "cuda/conv/grad_weight.h"
#include "cuda/conv/slab.cuh"

namespace dsr::cuda {

template <class T, int Units>
struct GradWeightConfig {
  static constexpr int kUnits = Units;  // positions of a lane
  static constexpr int kVector = Vector<T>::kSize;
  static constexpr int kTile = 32 * Units;
  static_assert(kUnits * kVector <= 16, "a channel's gradient may take a sixth of the registers");
};

// Lane 4 k: the sum over the warp of s[k].
__device__ __forceinline__ float reduce_eight(float (&s)[8]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 4, distance = 16; half > 0; half /= 2, distance /= 2) {
    const bool upper = lane & distance;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j >= half) continue;
      const float kept = upper ? s[j + half] : s[j];
      const float given = upper ? s[j] : s[j + half];
      s[j] = kept + __shfl_xor_sync(0xffffffffu, given, distance);
    }
  }
  s[0] += __shfl_xor_sync(0xffffffffu, s[0], 2);
  return s[0] + __shfl_xor_sync(0xffffffffu, s[0], 1);
}

// The gradient of one channel at a lane's positions; zeros where there is none.
template <class T, int Units, class Gradient>
__device__ __forceinline__ void load_gradient(const Gradient& gradient, int channel,
                                              const typename Gradient::Cursor (&at)[Units],
                                              const int (&images)[Units], int64_t image_stride,
                                              int64_t channel_offset,
                                              float (&grad)[Units][Vector<T>::kSize]) {
#pragma unroll
  for (int u = 0; u < Units; ++u) {
#pragma unroll
    for (int n = 0; n < Vector<T>::kSize; ++n) {
      grad[u][n] =
          n < images[u] ? gradient.value(channel, at[u], channel_offset + n * image_stride) : 0.f;
    }
  }
}

// One channel's non-zeros against its gradient: partial[i] += the sum over the warp's positions.
template <class T, int Units>
__device__ __forceinline__ void add_row(const char* slab, const int (&at)[Units],
                                        const float (&grad)[Units][Vector<T>::kSize],
                                        const int2* __restrict__ offsets, int2 segment, bool first,
                                        float* __restrict__ partial) {
  constexpr int kVector = Vector<T>::kSize;
  const int lane = threadIdx.x % 32;
  for (int i = segment.x; i < segment.y; i += 8) {
    const bool mine = lane % 4 == 0 && i + lane / 4 < segment.y;
    float* const to = partial + i + lane / 4;
    const float before = mine && !first ? *to : 0.f;
    float sums[8] = {};
#pragma unroll
    for (int four = 0; four < 8; four += 4) {
      if (i + four >= segment.y) continue;  // past the end: sums that nobody stores
      const int2 low = offsets[(i + four) / 2], high = offsets[(i + four) / 2 + 1];
      const int offset[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
      for (int k = four; k < four + 4; ++k) {
#pragma unroll
        for (int u = 0; u < Units; ++u) {
          float x[kVector];
          load_vector<T>(slab + at[u] + offset[k - four], x);
#pragma unroll
          for (int n = 0; n < kVector; ++n) sums[k] = fmaf(grad[u][n], x[n], sums[k]);
        }
      }
    }
    const float total = reduce_eight(sums);
    if (mine) *to = before + total;
  }
}

template <class T, int Units, class Source, class Gradient>
__device__ __forceinline__ void grad_weight_split(const GradWeight& pass, const Source& source,
                                                  const Gradient& grad,
                                                  const int2* __restrict__ offsets,
                                                  const int2* __restrict__ bounds,
                                                  float* __restrict__ partial, char* slabs) {
  using Config = GradWeightConfig<T, Units>;
  constexpr int kVector = Config::kVector;
  const Slab& s = pass.slab;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int block = blockIdx.x % pass.blocks;
  const int group = blockIdx.x / pass.blocks % pass.groups;
  const int row_blocks = (pass.dest_channels + pass.row_block - 1) / pass.row_block;
  const int row_part = blockIdx.x / (pass.blocks * pass.groups) % row_blocks;
  const int split = blockIdx.x / (pass.blocks * pass.groups * row_blocks);
  const int first_tile = split * pass.tiles_per_split;
  const int last_tile = min(first_tile + pass.tiles_per_split, pass.tiles);
  if (warp >= kComputeWarps) {
    const int first_channel = block * pass.channel_block;
    const int channel = group * pass.source_channels + first_channel;
    for (int tile = first_tile; tile < last_tile; ++tile) {
      const SlabRows rows = rows_of_tile(s, tile * Config::kTile, Config::kTile);
      fill_slab<T>(
          s, rows, pass.source_strides, source.from_channel(channel, pass.source_strides.c),
          min(pass.channel_block, pass.source_channels - first_channel), pass.lanes_on_channels,
          warp - kComputeWarps, slabs + (tile & 1) * pass.slab_bytes);
      block_barrier();
    }
    return;
  }
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const SlabRows rows = rows_of_tile(s, tile * Config::kTile, Config::kTile);
    int at[Units], images[Units];
    typename Gradient::Cursor grad_at[Units];
#pragma unroll
    for (int u = 0; u < Units; ++u) {
      const Position p = position_at(s, tile * Config::kTile + u * 32 + lane);
      at[u] = p.valid ? slab_byte(s, rows, p) : 0;
      images[u] = p.valid ? min(kVector, s.images - p.group * kVector) : 0;
      grad_at[u] =
          grad.cursor(group * pass.dest_channels * pass.grad_strides.c +
                      p.group * kVector * pass.grad_strides.n + p.row * pass.grad_strides.h +
                      (p.chunk * s.tile_cols + p.col) * pass.grad_strides.w);
    }
    const int first_row = row_part * pass.row_block + warp;
    const int last_row = min((row_part + 1) * pass.row_block, pass.dest_channels);
    block_barrier();
    for (int row = first_row; row < last_row; row += kComputeWarps) {
      const int2 segment = bounds[(block * pass.groups + group) * pass.dest_channels + row];
      float gradient[Units][kVector];
      load_gradient<T>(grad, group * pass.dest_channels + row, grad_at, images, pass.grad_strides.n,
                       row * pass.grad_strides.c, gradient);
      add_row<T>(slabs + (tile & 1) * pass.slab_bytes, at, gradient, offsets, segment,
                 tile == first_tile, partial + split * pass.entries);
    }
  }
}

template <class T, int Units>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    grad_weight_kernel(const __grid_constant__ GradWeight pass, const T* __restrict__ source,
                       const T* __restrict__ grad, const int2* __restrict__ offsets,
                       const int2* __restrict__ bounds, float* __restrict__ partial) {
  DSR_DYNAMIC_SHARED(char, slabs);
  grad_weight_split<T, Units>(pass, PlainSource<T>{source}, PlainSource<T>{grad}, offsets, bounds,
                              partial, slabs);
}

// With what `maps` says of both operands.
template <class T, int Units>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    fused_grad_weight_kernel(const __grid_constant__ GradWeight pass,
                             const __grid_constant__ GradWeightMaps maps,
                             const T* __restrict__ source, const T* __restrict__ grad,
                             const int2* __restrict__ offsets, const int2* __restrict__ bounds,
                             float* __restrict__ partial) {
  DSR_DYNAMIC_SHARED(char, slabs);
  grad_weight_split<T, Units>(pass, MappedSource<T>(source, maps.source),
                              MappedSource<T>(grad, maps.grad), offsets, bounds, partial, slabs);
}

}  // namespace dsr::cuda
