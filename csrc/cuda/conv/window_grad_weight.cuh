// The kernel of window_grad_weight.h.
//
// A thread block has a block of source channels, some windows and a split of the positions. Its
// fill warps bring a tile of positions into shared memory, the source's slab and the gradient's,
//
//     grad[row][position of the tile]      a vector each: 8 images. The odd plane makes the vectors
//                                          of 8 rows 8 different columns of banks.
//
// while its compute warps take their steps on the tile before. A warp's turn is kTurnSteps steps of
// a window. Two positions of 8 images are the 16 products that one instruction adds up:
//
//     a [row][position, image]      the gradient's vectors, as they lie
//     b [position, image][entry]    the source's vectors, each where its entry and position say
//
// The sums of a step then change places through shared memory, and those that belong to values are
// added to the split's partial sums, which no other warp touches; a second kernel adds up the
// splits in a fixed order. No atomics: the same bits every time. Where no warp has more than one
// turn, sums stay in registers from tile to tile.
#pragma once

#include "cuda/conv/slab.cuh"
#include "cuda/conv/window_grad_weight.h"
#include "cuda/tensor_core.h"

namespace dsr::cuda {

constexpr int kTurnSteps = 2;  // with which the gradient's vectors serve 32 entries
constexpr int kPairsUnrolled = 4;

using TurnSums = float[kTurnSteps][2][4];  // two tiles of 8 entries for each step

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

// ---- filling ------------------------------------------------------------------------------------

// grad[row][position], zeros where there is no position or image; by fill warp `warp`.
template <class T, class Gradient>
__device__ __forceinline__ void fill_gradient(const WindowGradWeight& pass, int first_position,
                                              const Gradient& gradient,  // [N, rows, ...]
                                              int rows, int warp, int fill_warps, char* grad) {
  constexpr int kVector = Vector<T>::kSize;
  const Slab& s = pass.slab;
  const Strides4& strides = pass.grad_strides;
  const bool on_channels = pass.grad_lanes_on_channels;
  const int lane = threadIdx.x % 32;
  for (int i = on_channels ? warp : lane; i < pass.tile; i += on_channels ? fill_warps : 32) {
    const Position p = position_at(s, first_position + i);
    const int count = p.valid ? min(kVector, s.images - p.group * kVector) : 0;
    const T* const from = gradient.at + p.group * kVector * strides.n + p.row * strides.h +
                          (p.chunk * s.tile_cols + p.col) * strides.w;
    fill_pixel<T>(grad + i * kVectorBytes, int64_t{kVectorBytes} * pass.grad_plane, gradient, from,
                  strides, count, on_channels ? lane : warp, on_channels ? 32 : fill_warps, rows);
  }
}

// Positions that do not exist read the first pixel, and have a gradient of zero.
__device__ __forceinline__ void fill_places(const WindowGradWeight& pass, const SlabRows& rows,
                                            int first_position, int warp, int fill_warps, int* at) {
  for (int i = warp * 32 + threadIdx.x % 32; i < pass.tile; i += fill_warps * 32) {
    const Position p = position_at(pass.slab, first_position + i);
    at[i % 2 * (pass.tile / 2) + i / 2] = p.valid ? slab_byte(pass.slab, rows, p) : 0;
  }
}

template <class T, class Source, class Gradient>
__device__ __forceinline__ void fill_stages(const WindowGradWeight& pass, int grad_bytes,
                                            const WindowWork& work, const Source& source,
                                            const Gradient& gradient, char* stages) {
  const int warp = threadIdx.x / 32 - pass.compute_warps;
  const int fill_warps = kWarps - pass.compute_warps;
  const int first_channel = work.block * pass.channel_block;
  const int channels = min(pass.channel_block, pass.source_channels - first_channel);
  const auto source_part =
      source.from_channel(work.group * pass.source_channels + first_channel, pass.source_strides.c);
  const auto grad_part = gradient.from_channel(work.group * pass.dest_channels + work.first_row(),
                                               pass.grad_strides.c);
  for (int tile = work.first_tile; tile < work.last_tile; ++tile) {
    const Stage stage(pass, grad_bytes, stages, tile & 1);
    const int first_position = tile * pass.tile;
    const SlabRows rows = rows_of_tile(pass.slab, first_position, pass.tile);
    fill_places(pass, rows, first_position, warp, fill_warps, stage.at);
    fill_slab<T>(pass.slab, rows, pass.source_strides, source_part, channels,
                 pass.source_lanes_on_channels, warp, stage.slab, fill_warps);
    fill_gradient<T>(pass, first_position, grad_part, work.rows(pass), warp, fill_warps,
                     stage.grad);
    block_barrier();
  }
}

// ---- computing ----------------------------------------------------------------------------------

// Which steps of which window a warp's turn has.
struct Turn {
  int window, first_step, steps;
};

// The turns of a thread block are numbered from window to window; those of a warp are compute_warps
// apart. `use` is called with each.
template <class Use>
__device__ __forceinline__ int for_each_turn(const WindowGradWeight& pass, const WindowWork& work,
                                             const int2* __restrict__ bounds, const Use& use) {
  const int windows = (pass.dest_channels + kWindowRows - 1) / kWindowRows;
  const int2* const segments = bounds + (work.block * pass.groups + work.group) * windows;
  int next = threadIdx.x / 32, before = 0;
  for (int window = work.first_window; window < work.last_window; ++window) {
    const int2 segment = segments[window];
    const int turns = (segment.y - segment.x + kTurnSteps - 1) / kTurnSteps;
    for (; next < before + turns; next += pass.compute_warps) {
      const int first = segment.x + (next - before) * kTurnSteps;
      use(Turn{window, first, min(kTurnSteps, segment.y - first)});
    }
    before += turns;
  }
  return before;
}

// The tile's share of kSteps steps.
template <class T, int kSteps>
__device__ __forceinline__ void multiply_tile(const char* slab, const char* grad, const int* at,
                                              int pairs, const int (&offsets)[kTurnSteps],
                                              TurnSums& sums) {
#pragma unroll 1
  for (int first = 0; first < pairs; first += kPairsUnrolled) {
    const int4 four = *reinterpret_cast<const int4*>(at + first);
    const int places[kPairsUnrolled] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int pair = 0; pair < kPairsUnrolled; ++pair) {
      uint32_t a[4];
      load_matrices(grad + (first + pair) * 2 * kVectorBytes, a);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        load_matrices(slab + places[pair] + offsets[step], b);
        multiply_add<T>(sums[step][0], a, b[0], b[1]);
        multiply_add<T>(sums[step][1], a, b[2], b[3]);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void take_turn(const WindowGradWeight& pass, const WindowWork& work,
                                          const int32_t* __restrict__ offsets, const Stage& stage,
                                          const Turn& turn, TurnSums& sums) {
  const int lane = threadIdx.x % 32, eight = lane / 8, within = lane % 8;
  // Matrices of a: rows 0-7 and 8-15 of the first position, then of the second. Rows that do not
  // exist are those of the last one once more: nobody keeps their sums.
  const int row = turn.window * kWindowRows + eight % 2 * 8 + within - work.first_row();
  const char* const grad =
      stage.grad + (min(row, work.rows(pass) - 1) * pass.grad_plane + eight / 2) * kVectorBytes;
  // Matrices of b: entries 0-7 at the first position and at the second, then 8-15.
  const int entry = eight / 2 * 8 + within;
  const int* const at = stage.at + eight % 2 * (pass.tile / 2);
  int of_entry[kTurnSteps];
#pragma unroll
  for (int step = 0; step < kTurnSteps; ++step)
    of_entry[step] =
        step < turn.steps ? offsets[(turn.first_step + step) * kStepEntries + entry] : 0;
  if (turn.steps == kTurnSteps) {
    multiply_tile<T, kTurnSteps>(stage.slab, grad, at, pass.tile / 2, of_entry, sums);
  } else {
    multiply_tile<T, 1>(stage.slab, grad, at, pass.tile / 2, of_entry, sums);
  }
}

// Where sum (entry, row) of a step lies in the warp's scratch: one that keeps the lanes' stores off
// each other's banks.
__device__ __forceinline__ int scratch_place(int place) { return place ^ (place >> 2 & 0x18); }

// Adds the sums of a step that belong to values to the partial sums or, where they are the first,
// stores them.
__device__ __forceinline__ void keep_step(const WindowList& list, int step,
                                          const float (&sums)[2][4], bool first, float* scratch,
                                          float* __restrict__ partial) {
  constexpr int kBatch = 4;  // values of a lane that are under way from memory at once
  const int lane = threadIdx.x % 32;
  __syncwarp();  // the values before have been read
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int entry = half * 8 + lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
      scratch[scratch_place(entry * kWindowRows + row)] = sums[half][i];
    }
  }
  __syncwarp();
  const int first_piece = list.piece_bounds[step];
  const int values = (list.piece_bounds[step + 1] - first_piece) << list.piece_shift;
#pragma unroll 1
  for (int value = lane; value < values; value += 32 * kBatch) {
    int to[kBatch];
    float sum[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (value + i * 32 >= values) continue;
      const int piece = first_piece + ((value + i * 32) >> list.piece_shift);
      const int within = (value + i * 32) & ((1 << list.piece_shift) - 1);
      to[i] = list.pieces[piece] + within;
      sum[i] = scratch[scratch_place(list.places[piece] + within)];
      if (!first) sum[i] += partial[to[i]];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (value + i * 32 < values) partial[to[i]] = sum[i];
    }
  }
}

template <class T>
__device__ __forceinline__ void compute_stages(const WindowGradWeight& pass, int grad_bytes,
                                               const WindowWork& work, const WindowList& list,
                                               float* __restrict__ partial, char* stages) {
  const auto* const bounds = reinterpret_cast<const int2*>(list.bounds);
  float* const scratch = reinterpret_cast<float*>(Stage(pass, grad_bytes, stages, kSlabs).slab) +
                         threadIdx.x / 32 * kStepSums;
  const int turns = for_each_turn(pass, work, bounds, [](const Turn&) {});
  const bool once = turns <= pass.compute_warps;
  TurnSums sums = {};
  for (int tile = work.first_tile; tile < work.last_tile; ++tile) {
    const Stage stage(pass, grad_bytes, stages, tile & 1);
    block_barrier();
    for_each_turn(pass, work, bounds, [&](const Turn& turn) {
      take_turn<T>(pass, work, list.offsets, stage, turn, sums);
      if (once && tile + 1 < work.last_tile) return;
#pragma unroll
      for (int step = 0; step < kTurnSteps; ++step) {
        if (step < turn.steps)
          keep_step(list, turn.first_step + step, sums[step], once || tile == work.first_tile,
                    scratch, partial);
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[step][i / 4][i % 4] = 0.f;
      }
    });
  }
}

template <class T, class Source, class Gradient>
__device__ __forceinline__ void window_grad_weight_split(
    const WindowGradWeight& pass, int grad_bytes, const WindowList& list, const Source& source,
    const Gradient& gradient, float* __restrict__ partial, char* stages) {
  const WindowWork work(pass);
  if (threadIdx.x / 32 >= pass.compute_warps) {
    fill_stages<T>(pass, grad_bytes, work, source, gradient, stages);
  } else {
    compute_stages<T>(pass, grad_bytes, work, list, partial + work.split * list.values, stages);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    window_grad_weight_kernel(const __grid_constant__ WindowGradWeight pass, int grad_bytes,
                              const __grid_constant__ WindowList list, const T* __restrict__ source,
                              const T* __restrict__ grad, float* __restrict__ partial) {
  DSR_DYNAMIC_SHARED(char, stages);
  window_grad_weight_split<T>(pass, grad_bytes, list, PlainSource<T>{source}, PlainSource<T>{grad},
                              partial, stages);
}

// With what `maps` says of both operands.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    fused_window_grad_weight_kernel(const __grid_constant__ WindowGradWeight pass, int grad_bytes,
                                    const __grid_constant__ WindowList list,
                                    const __grid_constant__ GradWeightMaps maps,
                                    const T* __restrict__ source, const T* __restrict__ grad,
                                    float* __restrict__ partial) {
  DSR_DYNAMIC_SHARED(char, stages);
  window_grad_weight_split<T>(pass, grad_bytes, list, MappedSource<T>(source, maps.source),
                              MappedSource<T>(grad, maps.grad), partial, stages);
}

}  // namespace dsr::cuda
