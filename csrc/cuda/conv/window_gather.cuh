// The kernel of window_gather.h.
//
// Items of work, slabs, filling and storing are those of gather.cuh. A computing warp has a window
// of destination channels and a few positions, each of which is a vector of 8 images, or of 4:
//
//     sums [row of the window][position, image]
//       += weights [row][entry] * slab [entry][position, image]       16 entries a step
//
// A row of the second matrix is a vector of the slab, wherever its entry and position say: lanes
// give its address freely. The weights of a step are put together in the warp's own tile
// (window_tile.cuh) and serve all its positions.
//
// Of floats, two positions make the 8 columns of an instruction. The second matrix comes word by
// word, for there is no load that transposes them: at once, lanes read the vectors of 4 entries at
// two positions. These are 4 apart, and so are their columns of banks where a row goes on; the list
// gives entries that follow each other columns that do. So the vectors fall into 8 different ones.
#pragma once

#include "cuda/conv/gather.cuh"
#include "cuda/conv/window_gather.h"
#include "cuda/conv/window_tile.cuh"

namespace dsr::cuda {

// Of a lane: rows q and q + 8 of the window, where q = lane / 4, and of each 8 columns of sums
// 2 (lane % 4) and the next one, which are images of one position.
template <class T, int Units>
struct WindowConfig {
  static constexpr int kRows = 2, kRowStep = 8;
  static constexpr int kVector = Vector<T>::kSize, kImages = 2;
  static constexpr int kTogether = 8 / kVector;  // positions in 8 columns of sums, kUnits apart
  static constexpr int kUnits = Units / kTogether, kPositionStep = 1;
  static constexpr int kLanes = 4, kPositions = Units;
  static constexpr bool kRuns = true;
  static_assert(kTogether == 1 || kUnits == 4, "4 apart, two positions have banks of their own");
  static_assert(Units % 2 == 0, "two positions are loaded at once");

  using Row = NarrowRow<WindowConfig>;
  using Sums = float[kUnits][4];
  __device__ __forceinline__ static float& sum(Sums& sums, int row, int unit, int image) {
    return sums[unit][2 * row + image];
  }
  __device__ __forceinline__ static int first_row() { return opaque(threadIdx.x) % 32 / 4; }
  __device__ __forceinline__ static int first_position() {
    return kTogether == 1 ? 0 : opaque(threadIdx.x) / 2 % 2 * kUnits;
  }
  __device__ __forceinline__ static int first_image() {
    return opaque(threadIdx.x) % (kVector / kImages) * kImages;
  }
  __device__ __forceinline__ static int images(int count) {
    return max(0, min(kImages, count - first_image()));
  }
};

// A warp's steps in one slab, and what of them is under way.
struct WindowStream {
  int next, end;
  int offset;          // of the lane's entry
  int pieces[3];       // first piece of the next step and of the two after it
  ChunkValues values;  // of the next step
};

__device__ __forceinline__ WindowStream open_windows(const WindowReader& reader, int2 steps) {
  WindowStream s{};
  s.next = steps.x, s.end = steps.y;
  if (s.next >= s.end) return s;
  const WindowList& list = reader.list;
#pragma unroll
  for (int i = 0; i < 3; ++i) s.pieces[i] = list.piece_bounds[min(s.next + i, s.end)];
  s.offset = list.offsets[s.next * kStepEntries + threadIdx.x % kStepEntries];
  s.values = reader.load(reader.chunks(s.pieces[0], reader.count(s.pieces[0], s.pieces[1])));
  return s;
}

// Where in a slab a lane's vectors or, of floats, words are: one of every two positions.
template <int Units>
using WindowPlaces = int[Units / 2];

// Adds a product of the step, for which `a` has the weights, to all sums. `offset`: of entry
// threadIdx.x % 16.
template <class T, int Units>
__device__ __forceinline__ void add_product(const uint32_t (&a)[4], int product, const char* slab,
                                            const WindowPlaces<Units>& at, int offset,
                                            GatherSums<WindowConfig<T, Units>>& sums) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int u = 0; u < Units; u += 2) {
      uint32_t b[4];
      load_matrices_transposed(slab + at[u / 2] + offset, b);
      multiply_add<T>(sums[u], a, b[0], b[1]);
      multiply_add<T>(sums[u + 1], a, b[2], b[3]);
    }
  } else {
    const int first = product * kDepth<T> + threadIdx.x % 4;
    const int low = __shfl_sync(0xffffffffu, offset, first);
    const int high = __shfl_sync(0xffffffffu, offset, first + 4);
    const auto word = [&](int place) {
      return as_operand<T>(*reinterpret_cast<const uint32_t*>(slab + place));
    };
#pragma unroll
    for (int u = 0; u < Units / 2; ++u)
      multiply_add<T>(sums[u], a, word(at[u] + low), word(at[u] + high));
  }
}

// `at`: where in the slab the lane's positions are.
template <class T, int Units>
__device__ __forceinline__ void add_windows(const WindowReader& reader, WindowStream& s,
                                            bool transposed, T* tile, const char* slab,
                                            const WindowPlaces<Units>& at,
                                            GatherSums<WindowConfig<T, Units>>& sums) {
  const WindowList& list = reader.list;
#pragma unroll 1
  while (s.next < s.end) {
    // Two loads that depend on each other lead to the next step's values: the first is under way
    // beside this step's tile, the second beside its products.
    const Chunks chunks = reader.chunks(s.pieces[1], reader.count(s.pieces[1], s.pieces[2]));
    const int further = list.piece_bounds[min(s.next + 3, s.end)];
    reader.put_tile(tile, s.pieces[0], reader.count(s.pieces[0], s.pieces[1]), s.values);
    uint32_t a[kProducts<T>][4];
#pragma unroll
    for (int product = 0; product < kProducts<T>; ++product)
      load_weights(tile, product * kDepth<T>, transposed, a[product]);
    const int offset = s.offset;
    ++s.next;
    if (s.next < s.end) s.offset = list.offsets[s.next * kStepEntries + threadIdx.x % kStepEntries];
    s.values = reader.load(chunks);
    s.pieces[0] = s.pieces[1], s.pieces[1] = s.pieces[2], s.pieces[2] = further;
#pragma unroll
    for (int product = 0; product < kProducts<T>; ++product)
      add_product<T, Units>(a[product], product, slab, at, offset, sums);
  }
}

// What a warp has of an item.
__device__ __forceinline__ int first_row_of(const Gather& pass, const GatherWork& work) {
  return work.first_row + opaque(threadIdx.x) / 32 % pass.row_warps * kWindowRows;
}
template <int Units>
__device__ __forceinline__ int first_position_of(const Gather& pass, const GatherWork& work) {
  return work.first_position + opaque(threadIdx.x) / 32 / pass.row_warps * Units;
}

template <int Units>
__device__ __forceinline__ int window_tile_size(const Gather& pass) {
  return kComputeWarps / pass.row_warps * Units;
}

// Vectors of two positions are loaded at once, each by half of the lanes.
template <class T, int Units>
__device__ __forceinline__ void find_positions(const Gather& pass, const GatherWork& work,
                                               WindowPlaces<Units>& at) {
  const Slab& s = pass.classes[work.which].slab;
  const SlabRows rows = rows_of_tile(s, work.first_position, window_tile_size<Units>(pass));
  constexpr bool kWhole = sizeof(T) == 2;  // vectors, not words of them
  constexpr int kStep = kWhole ? 2 : 1, kSecond = kWhole ? 1 : Units / 2;
  const int first = first_position_of<Units>(pass, work) + threadIdx.x % 32 / 16 * kSecond;
  const int word = kWhole ? 0 : threadIdx.x / 4 % 4 * 4;
#pragma unroll
  for (int u = 0; u < Units / 2; ++u) {
    const Position p = position_at(s, first + kStep * u);
    at[u] = (p.valid ? slab_byte(s, rows, p) : 0) + word;
  }
}

// The steps of the warp's window in a block of source channels.
__device__ __forceinline__ int2 window_steps(const Gather& pass, const GatherWork& work, int block,
                                             const int32_t* bounds) {
  const GatherClass& c = pass.classes[work.which];
  const int first_row = first_row_of(pass, work);
  if (first_row >= pass.dest_channels || c.blocks == 0) return {0, 0};
  const int windows = (pass.dest_channels + kWindowRows - 1) / kWindowRows;
  const int segment = (block * pass.groups + work.group) * windows + first_row / kWindowRows;
  return reinterpret_cast<const int2*>(bounds)[c.first_segment + segment];
}

template <class T, int Units, class Source, class Store>
__device__ __forceinline__ void window_gather_items(const Gather& pass, int items,
                                                    const Source& source,
                                                    const WindowReader& reader, const Store& store,
                                                    char* slabs) {
  using Config = WindowConfig<T, Units>;
  const int warp = threadIdx.x / 32;
  if (warp >= kComputeWarps) {
    fill_slabs<T>(pass, items, pass.row_warps * kWindowRows, window_tile_size<Units>(pass), source,
                  slabs);
    return;
  }
  T* const tile = reinterpret_cast<T*>(slabs + kSlabs * pass.slab_bytes + warp * kTileBytes<T>);
  // An item and, in the lowest bit, which slab is next.
  for (int turn = blockIdx.x * 2; turn / 2 < items; turn += gridDim.x * 2) {
    // Found anew wherever it is needed: in between, sums need the registers.
    const auto work = [&] {
      const int row_warps = opaque(pass.row_warps);
      return gather_work(pass, opaque(turn) / 2, row_warps * kWindowRows,
                         kComputeWarps / row_warps * Units);
    };
    WindowPlaces<Units> at;
    find_positions<T, Units>(pass, work(), at);
    GatherSums<Config> sums = {};
    for (int block = 0; block < work().blocks; ++block, turn ^= 1) {
      WindowStream stream =
          open_windows(reader, window_steps(pass, work(), block, reader.list.bounds));
      block_barrier();
      add_windows<T, Units>(reader, stream, pass.transposed, tile,
                            slabs + turn % 2 * pass.slab_bytes, at, sums);
    }
    const GatherWork done = work();
    if (first_row_of(pass, done) < pass.dest_channels)
      store.template store<Config>(pass, done, first_row_of(pass, done) + Config::first_row(),
                                   first_position_of<Units>(pass, done) + Config::first_position(),
                                   sums);
  }
}

template <class T, int Units>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    window_gather_kernel(const __grid_constant__ Gather pass, int items,
                         const __grid_constant__ WindowList list, int chunk_shift,
                         const T* __restrict__ source, const float* __restrict__ values,
                         const float* __restrict__ bias, T* __restrict__ dest) {
  DSR_DYNAMIC_SHARED(char, slabs);
  window_gather_items<T, Units>(pass, items, PlainSource<T>{source},
                                WindowReader{list, values, chunk_shift}, PlainStore<T>{bias, dest},
                                slabs);
}

// With what `maps` says on the way in and on the way out.
template <class T, int Units>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    fused_window_gather_kernel(const __grid_constant__ Gather pass, int items,
                               const __grid_constant__ GatherMaps maps,
                               const __grid_constant__ WindowList list, int chunk_shift,
                               const T* __restrict__ source, const float* __restrict__ values,
                               const float* __restrict__ bias, T* __restrict__ dest) {
  DSR_DYNAMIC_SHARED(char, slabs);
  window_gather_items<T, Units>(pass, items, MappedSource<T>(source, maps.source),
                                WindowReader{list, values, chunk_shift},
                                MappedStore<T>{maps.dest, bias, dest}, slabs);
}

}  // namespace dsr::cuda
