// The kernel of window_grad_weight.h.
//
// A thread block has a block of source channels, some windows and a split of the positions. Its
// fill warps bring a tile of positions into shared memory, the source's slab and the gradient's,
//
//     grad[row][position of the tile]      a vector each: 8 images, or 4 floats. The odd plane
//                                          makes the vectors of 8 rows 8 columns of banks.
//
// while its compute warps take their steps on the tile before. A warp's turn is kTurnSteps steps of
// a window. Two positions are the 16 products (of 4 images, 8) that one instruction adds up:
//
//     a [row][position, image]      the gradient's vectors, as they lie
//     b [position, image][entry]    the source's vectors, each where its entry and position say
//
// The sums of a step then change places through shared memory, and those that belong to values are
// added to the split's partial sums, which no other warp touches; a second kernel adds up the
// splits in a fixed order. No atomics: the same bits every time. Where warps have few turns, their
// sums stay in registers from tile to tile.
#pragma once

#include "cuda/conv/window_grad_fill.cuh"
#include "cuda/tensor_core.h"

namespace dsr::cuda {

constexpr int kPairsUnrolled = 4;

using TurnSums = float[kTurnSteps][2][4];  // two tiles of 8 entries for each step

// Which steps of which window a warp's turn has.
struct Turn {
  int window, first_step, steps;
};

// The turns of a thread block are numbered from window to window; those of a warp are compute_warps
// apart. `use` is called with each.
template <class Use>
__device__ __forceinline__ int for_each_turn(const WindowGradWeight& pass, const WindowWork& work,
                                             const WindowList& list, const Use& use) {
  const int windows = (pass.dest_channels + kWindowRows - 1) / kWindowRows;
  const int2* const segments = reinterpret_cast<const int2*>(list.bounds) +
                               (work.block * pass.groups + work.group) * windows;
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
      as_operands<T>(a);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        load_matrices(slab + places[pair] + offsets[step], b);
        as_operands<T>(b);
        multiply_add<T>(sums[step][0], a, b[0], b[1]);
        multiply_add<T>(sums[step][1], a, b[2], b[3]);
      }
    }
  }
}

// What a lane loads from in its warp's turn.
struct Operands {
  int steps;
  int grad;                // byte of its row of matrices in the gradient's slab
  int source[kTurnSteps];  // and in the source's, less the position's
};

__device__ __forceinline__ Operands operands_of(const WindowGradWeight& pass,
                                                const WindowWork& work,
                                                const int32_t* __restrict__ offsets,
                                                const Turn& turn) {
  const int lane = threadIdx.x % 32, eight = lane / 8, within = lane % 8;
  Operands of{turn.steps, 0, {}};
  // Matrices of a: rows 0-7 and 8-15 of the first position, then of the second. Rows that do not
  // exist are those of the last one once more: nobody keeps their sums.
  const int row = turn.window * kWindowRows + eight % 2 * 8 + within - work.first_row();
  of.grad = (min(row, work.rows(pass) - 1) * pass.grad_plane + eight / 2) * kVectorBytes;
  // Matrices of b: entries 0-7 at the first position and at the second, then 8-15.
  const int entry = eight / 2 * 8 + within;
#pragma unroll
  for (int step = 0; step < kTurnSteps; ++step) {
    if (step < turn.steps)
      of.source[step] = offsets[(turn.first_step + step) * kStepEntries + entry];
  }
  return of;
}

template <class T>
__device__ __forceinline__ void add_tile(const WindowGradWeight& pass, const Stage& stage,
                                         const Operands& of, TurnSums& sums) {
  const int pairs = pass.tile / 2;
  const int* const at = stage.at + threadIdx.x / 8 % 2 * pairs;
  if (of.steps == kTurnSteps) {
    multiply_tile<T, kTurnSteps>(stage.slab, stage.grad + of.grad, at, pairs, of.source, sums);
  } else if (of.steps > 0) {
    multiply_tile<T, 1>(stage.slab, stage.grad + of.grad, at, pairs, of.source, sums);
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

__device__ __forceinline__ void keep_turn(const WindowList& list, const Turn& turn,
                                          const TurnSums& sums, bool first, float* scratch,
                                          float* __restrict__ partial) {
#pragma unroll
  for (int step = 0; step < kTurnSteps; ++step) {
    if (step < turn.steps)
      keep_step(list, turn.first_step + step, sums[step], first, scratch, partial);
  }
}

// Of warps that have at most kHeldTurns turns: sums stay in registers from tile to tile.
template <class T>
__device__ __forceinline__ void hold_sums(const WindowGradWeight& pass, int grad_bytes,
                                          const WindowWork& work, const WindowList& list,
                                          char* stages, float* scratch,
                                          float* __restrict__ partial) {
  Turn turns[kHeldTurns] = {};
  int found = 0;
  for_each_turn(pass, work, list, [&](const Turn& turn) {
#pragma unroll
    for (int i = 0; i < kHeldTurns; ++i) {
      if (i == found) turns[i] = turn;
    }
    ++found;
  });
  Operands of[kHeldTurns];
#pragma unroll
  for (int i = 0; i < kHeldTurns; ++i) of[i] = operands_of(pass, work, list.offsets, turns[i]);
  TurnSums sums[kHeldTurns] = {};
#pragma unroll 1
  for (int tile = work.first_tile; tile < work.last_tile; ++tile) {
    const Stage stage(pass, grad_bytes, stages, tile & 1);
    block_barrier();
#pragma unroll
    for (int i = 0; i < kHeldTurns; ++i) add_tile<T>(pass, stage, of[i], sums[i]);
  }
#pragma unroll
  for (int i = 0; i < kHeldTurns; ++i) keep_turn(list, turns[i], sums[i], true, scratch, partial);
}

// Of others: each turn's sums of a tile go to the partial sums.
template <class T>
__device__ __forceinline__ void hand_over_sums(const WindowGradWeight& pass, int grad_bytes,
                                               const WindowWork& work, const WindowList& list,
                                               char* stages, float* scratch,
                                               float* __restrict__ partial) {
#pragma unroll 1
  for (int tile = work.first_tile; tile < work.last_tile; ++tile) {
    const Stage stage(pass, grad_bytes, stages, tile & 1);
    block_barrier();
    for_each_turn(pass, work, list, [&](const Turn& turn) {
      TurnSums sums = {};
      add_tile<T>(pass, stage, operands_of(pass, work, list.offsets, turn), sums);
      keep_turn(list, turn, sums, tile == work.first_tile, scratch, partial);
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
    float* const scratch = reinterpret_cast<float*>(Stage(pass, grad_bytes, stages, kSlabs).slab) +
                           threadIdx.x / 32 * kStepSums;
    partial += work.split * list.values;
    const int turns = for_each_turn(pass, work, list, [](const Turn&) {});
    if (turns <= kHeldTurns * pass.compute_warps) {
      hold_sums<T>(pass, grad_bytes, work, list, stages, scratch, partial);
    } else {
      hand_over_sums<T>(pass, grad_bytes, work, list, stages, scratch, partial);
    }
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
