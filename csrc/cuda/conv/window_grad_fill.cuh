// What a thread block of window_grad_weight.cuh has to do, and how it is brought to it: the filling
// warps' part.
#pragma once

#include "cuda/conv/slab.cuh"
#include "cuda/conv/window_grad_weight.h"

namespace dsr::cuda {

// What a thread block is to do.
struct WindowWork {
  int block, group, split;
  int first_window, last_window;
  int first_tile, last_tile;

  __device__ __forceinline__ explicit WindowWork(const WindowGradWeight& pass) {
    const int windows = (pass.dest_channels + kWindowRows - 1) / kWindowRows;
    const int parts = (windows + pass.window_block - 1) / pass.window_block;
    block = blockIdx.x % pass.blocks;
    int rest = blockIdx.x / pass.blocks;
    group = rest % pass.groups;
    rest /= pass.groups;
    first_window = rest % parts * pass.window_block;
    last_window = min(first_window + pass.window_block, windows);
    split = rest / parts;
    first_tile = split * pass.tiles_per_split;
    last_tile = min(first_tile + pass.tiles_per_split, pass.tiles);
  }

  __device__ __forceinline__ int first_row() const { return first_window * kWindowRows; }
  __device__ __forceinline__ int rows(const WindowGradWeight& pass) const {
    return min(last_window * kWindowRows, pass.dest_channels) - first_row();
  }
};

// Where the parts of a stage lie.
struct Stage {
  char* slab;
  char* grad;
  int* at;  // [2][tile / 2] bytes of the even and the odd positions in the slab

  __device__ __forceinline__ Stage(const WindowGradWeight& pass, int grad_bytes, char* stages,
                                   int number)
      : slab(stages + number * (pass.slab_bytes + grad_bytes + pass.tile * 4)),
        grad(slab + pass.slab_bytes),
        at(reinterpret_cast<int*>(grad + grad_bytes)) {}
};

// grad[row][position], zeros where there is no position or image; by warp `warp` of
// pass.grad_warps.
template <class T, class Gradient>
__device__ __forceinline__ void fill_gradient(const WindowGradWeight& pass, int first_position,
                                              const Gradient& gradient,  // [N, rows, ...]
                                              int rows, int warp, char* grad) {
  constexpr int kVector = Vector<T>::kSize;
  const Slab& s = pass.slab;
  const Strides4& strides = pass.grad_strides;
  const bool on_channels = pass.grad_lanes_on_channels;
  const int lane = threadIdx.x % 32;
  for (int i = on_channels ? warp : lane; i < pass.tile; i += on_channels ? pass.grad_warps : 32) {
    const Position p = position_at(s, first_position + i);
    const int count = p.valid ? min(kVector, s.images - p.group * kVector) : 0;
    const T* const from = gradient.at + p.group * kVector * strides.n + p.row * strides.h +
                          (p.chunk * s.tile_cols + p.col) * strides.w;
    fill_pixel<T>(grad + i * kVectorBytes, int64_t{kVectorBytes} * pass.grad_plane, gradient, from,
                  strides, count, on_channels ? lane : warp, on_channels ? 32 : pass.grad_warps,
                  rows);
  }
  if constexpr (kFillsAsync<T, Gradient>) wait_for_copies();
}

// Positions that do not exist read the first pixel, and have a gradient of zero.
__device__ __forceinline__ void fill_places(const WindowGradWeight& pass, int first_position,
                                            int warp, int* at) {
  const SlabRows rows = rows_of_tile(pass.slab, first_position, pass.tile);
  for (int i = warp * 32 + threadIdx.x % 32; i < pass.tile; i += pass.grad_warps * 32) {
    const Position p = position_at(pass.slab, first_position + i);
    at[i % 2 * (pass.tile / 2) + i / 2] = p.valid ? slab_byte(pass.slab, rows, p) : 0;
  }
}

// Of the filling warps, pass.grad_warps bring the gradient and the others the source: apart, each
// does with fewer registers.
template <class T, class Source, class Gradient>
__device__ __forceinline__ void fill_stages(const WindowGradWeight& pass, int grad_bytes,
                                            const WindowWork& work, const Source& source,
                                            const Gradient& gradient, char* stages) {
  const int warp = threadIdx.x / 32 - pass.compute_warps;
  if (warp < pass.grad_warps) {
    const int channel = work.group * pass.dest_channels + work.first_row();
    const auto part = gradient.from_channel(channel, pass.grad_strides.c);
    for (int tile = work.first_tile; tile < work.last_tile; ++tile) {
      const Stage stage(pass, grad_bytes, stages, tile & 1);
      fill_places(pass, tile * pass.tile, warp, stage.at);
      fill_gradient<T>(pass, tile * pass.tile, part, work.rows(pass), warp, stage.grad);
      block_barrier();
    }
    return;
  }
  const int first_channel = work.block * pass.channel_block;
  const int channels = min(pass.channel_block, pass.source_channels - first_channel);
  const auto part =
      source.from_channel(work.group * pass.source_channels + first_channel, pass.source_strides.c);
  for (int tile = work.first_tile; tile < work.last_tile; ++tile) {
    const Stage stage(pass, grad_bytes, stages, tile & 1);
    const SlabRows rows = rows_of_tile(pass.slab, tile * pass.tile, pass.tile);
    fill_slab<T>(pass.slab, rows, pass.source_strides, part, channels,
                 pass.source_lanes_on_channels, warp - pass.grad_warps, stage.slab,
                 kWarps - pass.compute_warps - pass.grad_warps);
    block_barrier();
  }
}

}  // namespace dsr::cuda
