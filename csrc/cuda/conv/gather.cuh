// The kernel of gather.h.
//
// A thread block stays on its multiprocessor and takes one item of work after another: a tile of
// positions and a set of destination channels. Sixteen warps compute on one slab,
//
//     warp 0    channels 0 .. kRows - 1           a lane: kUnits positions of kVector images each,
//     warp 1    channels kRows .. 2 * kRows - 1   kRows * kUnits * kVector sums in registers
//     ...                                         (row_warps < 16: the others take more positions)
//
// while four fill the next one, of the same item's next source channels or of the next item:
//
//     fill  0 | 1 | 2 | 3 | ...      one barrier between columns, two slabs in turn
//     compute | 0 | 1 | 2 | 3 ...
//
// What a multiply-add reads from shared memory, 4 bytes (2 in low precision) of 128 a clock, bounds
// the kernel: all else is arranged so that the loads are whole 16-byte vectors, free of bank
// conflicts where the layout can be (cuda/conv/plan/layout.h). The non-zeros of a warp
// are one stream, read two at a time and one step ahead, the same for all lanes.
#pragma once

#include "cuda/conv/store.cuh"

namespace dsr::cuda {

static_assert(kListAlign == 2, "the list is read two entries at a time, from a segment's start on");

__device__ __forceinline__ GatherWork gather_work(const Gather& pass, int item, int row_block,
                                                  int tile_size) {
  const int row_blocks = (pass.dest_channels + row_block - 1) / row_block;
  const int tile = item / (row_blocks * pass.groups);
  const int rest = item - tile * row_blocks * pass.groups;
  GatherWork work{};
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

// A warp's non-zeros in one slab: the segments of its channels, one after the other.
struct Stream {
  int next, end;  // the next entry, and the end of the present channel's segment
  int channels;   // the warp's channels that exist
};

__device__ __forceinline__ Stream open_stream(const Gather& pass, const GatherWork& work, int block,
                                              int first_row, const int2* bounds) {
  const int channels = pass.dest_channels - first_row;
  if (channels <= 0 || pass.classes[work.which].blocks == 0) return {0, 0, 0};
  const int2 first = bounds[pass.classes[work.which].first_segment +
                            (block * pass.groups + work.group) * pass.dest_channels + first_row];
  return {first.x, first.y, channels};
}

template <class Config, class T>
__device__ __forceinline__ void add_block(const Gather& pass, const GatherWork& work, int block,
                                          int first_row, const char* slab,
                                          const int (&at)[Config::kUnits],
                                          const int4* __restrict__ list,
                                          const int2* __restrict__ bounds, Stream stream, int4 now,
                                          GatherSums<Config>& sums) {
  const int2* const segments = bounds + pass.classes[work.which].first_segment +
                               (block * pass.groups + work.group) * pass.dest_channels + first_row;
  int i = stream.next, end = stream.end;
#pragma unroll
  for (int r = 0; r < Config::kRows; ++r) {
    const int next_end = r + 1 < Config::kRows && r + 1 < stream.channels ? segments[r + 1].y : 0;
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

// The filling warps' part: one slab ahead of those who compute.
template <class T, class Source>
__device__ __forceinline__ void fill_slabs(const Gather& pass, int items, int row_block,
                                           int tile_size, const Source& source, char* slabs) {
  const int warp = threadIdx.x / 32 - kComputeWarps;
  int into = 0;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const GatherWork work = gather_work(pass, item, row_block, tile_size);
    const GatherClass& c = pass.classes[work.which];
    const SlabRows rows = rows_of_tile(c.slab, work.first_position, tile_size);
    for (int block = 0; block < work.blocks; ++block, into ^= 1) {
      if (c.blocks > 0) {
        const int first_channel = block * pass.channel_block;
        const int channel = work.group * pass.source_channels + first_channel;
        fill_slab<T>(c.slab, rows, pass.source_strides,
                     source.from_channel(channel, pass.source_strides.c),
                     min(pass.channel_block, pass.source_channels - first_channel),
                     pass.lanes_on_channels, warp, slabs + into * pass.slab_bytes);
      }
      block_barrier();
    }
  }
}

template <class T, int Rows, int Units, class Source, class Store>
__device__ __forceinline__ void gather_items(const Gather& pass, int items, const Source& source,
                                             const int4* __restrict__ list,
                                             const int2* __restrict__ bounds, const Store& store,
                                             char* slabs) {
  using Config = GatherConfig<T, Rows, Units>;
  const int warp = threadIdx.x / 32;
  const int row_block = pass.row_warps * Rows;
  const int tile_size = kComputeWarps / pass.row_warps * Units * 32;
  if (warp >= kComputeWarps) {
    fill_slabs<T>(pass, items, row_block, tile_size, source, slabs);
    return;
  }
  int into = 0;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const GatherWork work = gather_work(pass, item, row_block, tile_size);
    const Slab& s = pass.classes[work.which].slab;
    const int first_row = work.first_row + warp % pass.row_warps * Rows;
    const int my_position =
        work.first_position + warp / pass.row_warps * Units * 32 + threadIdx.x % 32;
    const SlabRows rows = rows_of_tile(s, work.first_position, tile_size);
    int at[Units];
#pragma unroll
    for (int u = 0; u < Units; ++u) {
      const Position p = position_at(s, my_position + u * 32);
      at[u] = p.valid ? slab_byte(s, rows, p) : 0;
    }
    GatherSums<Config> sums = {};
    for (int block = 0; block < work.blocks; ++block, into ^= 1) {
      const Stream stream = open_stream(pass, work, block, first_row, bounds);
      const int4 now = stream.channels > 0 ? list[stream.next / 2] : int4{};
      block_barrier();
      if (stream.channels > 0) {
        add_block<Config, T>(pass, work, block, first_row, slabs + into * pass.slab_bytes, at, list,
                             bounds, stream, now, sums);
      }
    }
    store.template store<Config>(pass, work, first_row, my_position, sums);
  }
}

template <class T, int Rows, int Units>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    gather_kernel(const __grid_constant__ Gather pass, int items, const T* __restrict__ source,
                  const int4* __restrict__ list,    // two entries (offset, value) each
                  const int2* __restrict__ bounds,  // [segments]
                  const float* __restrict__ bias, T* __restrict__ dest) {
  DSR_DYNAMIC_SHARED(char, slabs);
  gather_items<T, Rows, Units>(pass, items, PlainSource<T>{source}, list, bounds,
                               PlainStore<T>{bias, dest}, slabs);
}

// With what `maps` says on the way in and on the way out.
template <class T, int Rows, int Units>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    fused_gather_kernel(const __grid_constant__ Gather pass, int items,
                        const __grid_constant__ GatherMaps maps, const T* __restrict__ source,
                        const int4* __restrict__ list, const int2* __restrict__ bounds,
                        const float* __restrict__ bias, T* __restrict__ dest) {
  DSR_DYNAMIC_SHARED(char, slabs);
  gather_items<T, Rows, Units>(pass, items, MappedSource<T>(source, maps.source), list, bounds,
                               MappedStore<T>{maps.dest, bias, dest}, slabs);
}

}  // namespace dsr::cuda
