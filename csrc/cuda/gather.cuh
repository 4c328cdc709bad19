// The kernel of gather.h.
//
// A block of 8 warps keeps one tile of the source in shared memory and serves a set of destination
// channels from it, kRows of them per warp and kUnits * 32 positions:
//
//     warp 0   channels 0 .. kRows - 1            each lane: kUnits positions, kVector images each,
//     warp 1   channels kRows .. 2 * kRows - 1    kRows * kUnits * kVector sums in registers
//     ...                                         (row_warps < 8: the other warps take more
//     positions)
//
// What a multiply-add reads from shared memory, 4 bytes (2 in low precision) of 128 a clock, bounds
// the kernel: all else is arranged so that the loads are whole 16-byte vectors free of bank
// conflicts. The non-zeros of a warp are one stream, read two at a time and one step ahead, the
// same for all lanes.
#pragma once

#include "cuda/gather.h"
#include "cuda/slab.cuh"

namespace dsr::cuda {

template <class T, int Rows, int Units>
struct GatherConfig {
  static constexpr int kRows = Rows;    // destination channels of a warp
  static constexpr int kUnits = Units;  // positions of a lane
  static constexpr int kVector = Vector<T>::kSize;
  static constexpr int kBlocksPerMultiprocessor = 2;  // one fills its slab while the other computes
  static_assert(kRows * kUnits * kVector <= 64,
                "the sums of a thread must leave half of its 128 registers for the rest");
};

template <class Config, class T>
__device__ __forceinline__ void accumulate(const char* slab, const int (&at)[Config::kUnits],
                                           int offset, float value,
                                           float (&sums)[Config::kUnits][Config::kVector]) {
#pragma unroll
  for (int u = 0; u < Config::kUnits; ++u) {
    float x[Config::kVector];
    load_vector<T>(slab + at[u] + offset, x);
#pragma unroll
    for (int i = 0; i < Config::kVector; ++i) sums[u][i] = fmaf(value, x[i], sums[u][i]);
  }
}

template <class T, int Rows, int Units>
__global__ void __launch_bounds__(kThreads, 2)
    gather_kernel(const __grid_constant__ Gather pass, const T* __restrict__ source,
                  const int4* __restrict__ list,    // two entries (offset, value) each
                  const int2* __restrict__ bounds,  // [segments]
                  const float* __restrict__ bias, T* __restrict__ dest) {
  using Config = GatherConfig<T, Rows, Units>;
  constexpr int kVector = Config::kVector;
  DSR_DYNAMIC_SHARED(char, slab);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row_warp = warp % pass.row_warps;
  const int tile_size = kWarps / pass.row_warps * Units * 32;
  const int row_block = pass.row_warps * Rows;
  const int row_blocks = (pass.dest_channels + row_block - 1) / row_block;
  const int tile = blockIdx.x / (row_blocks * pass.groups);
  const int rest = blockIdx.x - tile * row_blocks * pass.groups;
  const int group = rest / row_blocks;
  int which = 0;
  while (which + 1 < pass.class_count && tile >= pass.classes[which + 1].first_tile) ++which;
  const GatherClass& c = pass.classes[which];
  const Slab& s = c.slab;

  const int first_position = (tile - c.first_tile) * tile_size;
  const SlabRows slab_rows = rows_of_tile(s, first_position, tile_size);
  const int first_row = (rest - group * row_blocks) * row_block + row_warp * Rows;
  const int my_position = first_position + (warp / pass.row_warps) * Units * 32 + lane;
  int at[Units];
#pragma unroll
  for (int u = 0; u < Units; ++u) {
    const Position p = position_at(s, my_position + u * 32);
    at[u] = p.valid ? slab_byte(s, slab_rows, p) : 0;
  }

  float sums[Rows][Units][kVector] = {};
  source += group * pass.source_channels * pass.source_strides.c;
  for (int block = 0; block < c.blocks; ++block) {
    const int first_channel = block * pass.channel_block;
    const int channels = min(pass.channel_block, pass.source_channels - first_channel);
    if (block > 0) __syncthreads();
    fill_slab(s, slab_rows, pass.source_strides, source + first_channel * pass.source_strides.c,
              channels, pass.lanes_on_channels, slab);
    const int2* const segments =
        bounds + c.first_segment + (block * pass.groups + group) * pass.dest_channels + first_row;
    int i = first_row < pass.dest_channels ? segments[0].x : 0;
    int end = first_row < pass.dest_channels ? segments[0].y : 0;
    int4 now = list[i / 2];
    __syncthreads();
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const bool more = r + 1 < Rows && first_row + r + 1 < pass.dest_channels;
      const int next_end = more ? segments[r + 1].y : 0;
#pragma unroll 2  // enough loads in flight; more would cost registers and instruction cache
      for (; i + 2 <= end; i += 2) {
        const int4 next = list[i / 2 + 1];
        accumulate<Config, T>(slab, at, now.x, __int_as_float(now.y), sums[r]);
        accumulate<Config, T>(slab, at, now.z, __int_as_float(now.w), sums[r]);
        now = next;
      }
      if (i < end) {
        const int4 next = list[i / 2 + 1];
        accumulate<Config, T>(slab, at, now.x, __int_as_float(now.y), sums[r]);
        now = next;
        i += 2;
      }
      end = next_end;
    }
  }

#pragma unroll
  for (int u = 0; u < Units; ++u) {
    const Position p = position_at(s, my_position + u * 32);
    if (!p.valid) continue;
    const int h = c.dest_h + p.row * pass.dest_step_h;
    const int w = c.dest_w + (p.chunk * s.tile_cols + p.col) * pass.dest_step_w;
    const int images = min(kVector, s.images - p.group * kVector);
    const int64_t channel = group * pass.dest_channels + first_row;
    T* to = dest + p.group * kVector * pass.dest_strides.n + channel * pass.dest_strides.c +
            h * pass.dest_strides.h + w * pass.dest_strides.w;
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      if (first_row + r < pass.dest_channels) {
        const float b = bias == nullptr ? 0.f : bias[channel + r];
#pragma unroll
        for (int n = 0; n < kVector; ++n) {
          if (n < images)
            to[r * pass.dest_strides.c + n * pass.dest_strides.n] =
                from_float<T>(sums[r][u][n] + b);
        }
      }
    }
  }
}

}  // namespace dsr::cuda
