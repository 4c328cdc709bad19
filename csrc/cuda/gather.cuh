// The kernel of gather.h.
//
// A thread block stays on its multiprocessor and takes one item of work after another: a tile of
// positions and a set of destination channels. Sixteen warps compute on one slab,
//
//     warp 0    channels 0 .. kRows - 1            each lane: kUnits positions, kVector images
//     each, warp 1    channels kRows .. 2 * kRows - 1    kRows * kUnits * kVector sums in registers
//     ...                                          (row_warps < 16: the others take more positions)
//
// while four fill the next one, of the same item's next source channels or of the next item:
//
//     fill  0 | 1 | 2 | 3 | ...      one barrier between columns, two slabs in turn
//     compute | 0 | 1 | 2 | 3 ...
//
// What a multiply-add reads from shared memory, 4 bytes (2 in low precision) of 128 a clock, bounds
// the kernel: all else is arranged so that the loads are whole 16-byte vectors free of bank
// conflicts. The non-zeros of a warp are one stream, read two at a time and one step ahead, the
// same for all lanes.
#pragma once

#include "cuda/gather.h"
#include "cuda/slab.cuh"

namespace dsr::cuda {

// Channels that a filling lane has in flight, as far as its registers go.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kGatherBatch = 3;
#else
constexpr int kGatherBatch = 8;
#endif

template <class T, int Rows, int Units>
struct GatherConfig {
  static constexpr int kRows = Rows;    // destination channels of a warp
  static constexpr int kUnits = Units;  // positions of a lane
  static constexpr int kVector = Vector<T>::kSize;
  static constexpr int kBatch = sizeof(T) == 4 ? kGatherBatch : 2;
  static_assert(kRows * kUnits * kVector <= 32, "sums may take a third of a thread's registers");
};

// One slab's worth: a tile, a set of destination channels, a block of source channels.
struct GatherWork {
  int item, block;
  int which, first_position;  // the class, and where in it the tile starts
  int group, first_row;       // of the convolution; the set's first channel in it
  int blocks;                 // of source channels, at least one: zeros are stored too
};

__device__ __forceinline__ GatherWork gather_work(const Gather& pass, int item, int row_block,
                                                  int tile_size) {
  const int row_blocks = (pass.dest_channels + row_block - 1) / row_block;
  const int tile = item / (row_blocks * pass.groups);
  const int rest = item - tile * row_blocks * pass.groups;
  GatherWork work{};
  work.item = item;
  while (work.which + 1 < pass.class_count && tile >= pass.classes[work.which + 1].first_tile)
    ++work.which;
  work.first_position = (tile - pass.classes[work.which].first_tile) * tile_size;
  work.group = rest / row_blocks;
  work.first_row = (rest - work.group * row_blocks) * row_block;
  work.blocks = max(1, pass.classes[work.which].blocks);
  return work;
}

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

// The stream of a warp's non-zeros in one slab: the segments of its rows, one after the other.
struct Stream {
  int next, end;  // the next entry, and the end of the present row's segment
  int rows;       // the warp's rows that exist
};

__device__ __forceinline__ Stream open_stream(const Gather& pass, const GatherWork& work,
                                              int first_row, const int2* bounds) {
  const int rows = pass.dest_channels - first_row;
  if (rows <= 0 || pass.classes[work.which].blocks == 0) return {0, 0, 0};
  const int2 first =
      bounds[pass.classes[work.which].first_segment +
             (work.block * pass.groups + work.group) * pass.dest_channels + first_row];
  return {first.x, first.y, rows};
}

template <class Config, class T>
__device__ __forceinline__ void add_block(
    const Gather& pass, const GatherWork& work, int first_row, const char* slab,
    const int (&at)[Config::kUnits], const int4* __restrict__ list, const int2* __restrict__ bounds,
    Stream stream, int4 now, float (&sums)[Config::kRows][Config::kUnits][Config::kVector]) {
  const int2* const segments = bounds + pass.classes[work.which].first_segment +
                               (work.block * pass.groups + work.group) * pass.dest_channels +
                               first_row;
  int i = stream.next, end = stream.end;
#pragma unroll
  for (int r = 0; r < Config::kRows; ++r) {
    const int next_end = r + 1 < Config::kRows && r + 1 < stream.rows ? segments[r + 1].y : 0;
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

template <class Config, class T>
__device__ __forceinline__ void store_sums(
    const Gather& pass, const GatherWork& work, int first_row, int my_position,
    const float* __restrict__ bias, T* __restrict__ dest,
    const float (&sums)[Config::kRows][Config::kUnits][Config::kVector]) {
  const GatherClass& c = pass.classes[work.which];
  const Slab& s = c.slab;
  const int64_t channel = work.group * pass.dest_channels + first_row;
#pragma unroll
  for (int u = 0; u < Config::kUnits; ++u) {
    const Position p = position_at(s, my_position + u * 32);
    if (!p.valid) continue;
    const int h = c.dest_h + p.row * pass.dest_step_h;
    const int w = c.dest_w + (p.chunk * s.tile_cols + p.col) * pass.dest_step_w;
    const int images = min(Config::kVector, s.images - p.group * Config::kVector);
    T* const to = dest + p.group * Config::kVector * pass.dest_strides.n +
                  channel * pass.dest_strides.c + h * pass.dest_strides.h + w * pass.dest_strides.w;
#pragma unroll
    for (int r = 0; r < Config::kRows; ++r) {
      if (first_row + r >= pass.dest_channels) continue;
      const float b = bias == nullptr ? 0.f : bias[channel + r];
#pragma unroll
      for (int n = 0; n < Config::kVector; ++n) {
        if (n < images)
          to[r * pass.dest_strides.c + n * pass.dest_strides.n] = from_float<T>(sums[r][u][n] + b);
      }
    }
  }
}

template <class T, int Rows, int Units>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    gather_kernel(const __grid_constant__ Gather pass, int items, const T* __restrict__ source,
                  const int4* __restrict__ list,    // two entries (offset, value) each
                  const int2* __restrict__ bounds,  // [segments]
                  const float* __restrict__ bias, T* __restrict__ dest) {
  using Config = GatherConfig<T, Rows, Units>;
  DSR_DYNAMIC_SHARED(char, slabs);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool fills = warp >= kComputeWarps;
  const int row_block = pass.row_warps * Rows;
  const int tile_size = kComputeWarps / pass.row_warps * Units * 32;
  const int my_row = warp % pass.row_warps * Rows;
  const int my_position = warp / pass.row_warps * Units * 32 + lane;

  float sums[Rows][Units][Config::kVector];
  GatherWork ahead = gather_work(pass, blockIdx.x, row_block, tile_size);
  GatherWork work = ahead;
  bool started = false;
  Stream stream{};
  int4 now{};
  for (int into = 0;; into ^= 1) {
    // All warps fill the first slab; then the first ones have something to compute.
    const bool more = ahead.item < items;
    if (more && (fills || !started) && pass.classes[ahead.which].blocks > 0) {
      const Slab& s = pass.classes[ahead.which].slab;
      const int first_channel = ahead.block * pass.channel_block;
      const int channel = ahead.group * pass.source_channels + first_channel;
      fill_slab<T, Config::kBatch>(s, rows_of_tile(s, ahead.first_position, tile_size),
                                   pass.source_strides, source + channel * pass.source_strides.c,
                                   min(pass.channel_block, pass.source_channels - first_channel),
                                   pass.lanes_on_channels, started ? warp - kComputeWarps : warp,
                                   started ? kFillWarps : kWarps, slabs + into * pass.slab_bytes);
    }
    if (!fills) {
      Stream next_stream{};
      if (more) next_stream = open_stream(pass, ahead, ahead.first_row + my_row, bounds);
      if (started) {
        const Slab& s = pass.classes[work.which].slab;
        const int first_row = work.first_row + my_row;
        if (work.block == 0) {
#pragma unroll
          for (int r = 0; r < Rows; ++r)
#pragma unroll
            for (int u = 0; u < Units; ++u)
#pragma unroll
              for (int n = 0; n < Config::kVector; ++n) sums[r][u][n] = 0.f;
        }
        const SlabRows rows = rows_of_tile(s, work.first_position, tile_size);
        int at[Units];
#pragma unroll
        for (int u = 0; u < Units; ++u) {
          const Position p = position_at(s, work.first_position + my_position + u * 32);
          at[u] = p.valid ? slab_byte(s, rows, p) : 0;
        }
        if (stream.rows > 0) {
          add_block<Config, T>(pass, work, first_row, slabs + (into ^ 1) * pass.slab_bytes, at,
                               list, bounds, stream, now, sums);
        }
        if (work.block + 1 == work.blocks) {
          store_sums<Config, T>(pass, work, first_row, work.first_position + my_position, bias,
                                dest, sums);
        }
      }
      stream = next_stream;
      if (more && stream.rows > 0) now = list[stream.next / 2];
    }
    if (!more) break;
    __syncthreads();
    started = true;
    work = ahead;
    if (++ahead.block == ahead.blocks)
      ahead = gather_work(pass, ahead.item + gridDim.x, row_block, tile_size);
  }
}

}  // namespace dsr::cuda
