// The weights of a step, 16 rows of a window by 16 entries, put together in shared memory.
//
// A step's values come in chunks of 1, 2 or 4 consecutive ones. They are loaded a step ahead.
#pragma once

#include "cuda/conv/vector.cuh"
#include "cuda/conv/window_list.h"
#include "cuda/tensor_core.h"

namespace dsr::cuda {

constexpr int kTileBytes = kStepSums * 2;
constexpr int kLaneChunks = 2;  // that are under way for each lane: all there are of 4 values each
static_assert(kLaneChunks == 2 && kLaneChunks * 32 * 4 >= kStepSums,
              "steps of whole pieces have no further chunks");

// Of which values, and at which place of the tile.
struct Chunk {
  int value;       // -1 where there is none
  uint32_t place;  // kNoPlace
};
constexpr uint32_t kNoPlace = 0xffff;

// A lane's; places in 16 bits each, since registers are scarce.
struct Chunks {
  int values[kLaneChunks];
  uint32_t places;
};

struct ChunkValues {
  float4 values[kLaneChunks];
  uint32_t places;
};

// A list, and how its values are read.
struct WindowReader {
  const WindowList& list;
  const float* __restrict__ values;
  int chunk_shift;  // 1 << chunk_shift values to a chunk

  // Chunks of the pieces from `first` to `end`.
  __device__ __forceinline__ int count(int first, int end) const {
    return (end - first) << (list.piece_shift - chunk_shift);
  }

  __device__ __forceinline__ Chunk chunk(int first, int count, int i) const {
    if (i >= count) return {-1, kNoPlace};
    const int of_piece = list.piece_shift - chunk_shift;
    const int piece = first + (i >> of_piece);
    const int within = (i - (i >> of_piece << of_piece)) << chunk_shift;
    return {list.pieces[piece] + within, static_cast<uint32_t>(list.places[piece] + within)};
  }

  __device__ __forceinline__ Chunks chunks(int first, int count) const {
    const Chunk low = chunk(first, count, threadIdx.x % 32);
    const Chunk high = chunk(first, count, threadIdx.x % 32 + 32);
    return {{low.value, high.value}, low.place | high.place << 16};
  }

  __device__ __forceinline__ float4 load(int value) const {
    float4 x{};
    if (value < 0) return x;
    if (chunk_shift == 2) return *reinterpret_cast<const float4*>(values + value);
    if (chunk_shift == 1) {
      const float2 two = *reinterpret_cast<const float2*>(values + value);
      x.x = two.x, x.y = two.y;
    } else {
      x.x = values[value];
    }
    return x;
  }

  __device__ __forceinline__ ChunkValues load(const Chunks& chunks) const {
    return {{load(chunks.values[0]), load(chunks.values[1])}, chunks.places};
  }

  // Rows of the tile are 32 bytes, in two halves. Halves change places in every other four rows,
  // which keeps the eight that are read at once off each other's banks.
  template <class T>
  __device__ __forceinline__ void put(T* tile, uint32_t place, const float4& x) const {
    if (place == kNoPlace) return;
    T* const to = tile + (place ^ (place >> 3 & 8));
    const T four[4] = {from_float<T>(x.x), from_float<T>(x.y), from_float<T>(x.z),
                       from_float<T>(x.w)};
    if (chunk_shift == 2) {
      uint2 packed;
      memcpy(&packed, four, sizeof(packed));
      *reinterpret_cast<uint2*>(to) = packed;
    } else if (chunk_shift == 1) {
      uint32_t packed;
      memcpy(&packed, four, sizeof(packed));
      *reinterpret_cast<uint32_t*>(to) = packed;
    } else {
      *to = four[0];
    }
  }

  // The tile of the pieces from `first` on, of which `ahead` has the first chunks; as the matrix
  // instruction takes it. `transposed`: the tile has rows of a row's weights, else of an entry's.
  template <class T>
  __device__ __forceinline__ void tile(T* tile, int first, int count, const ChunkValues& ahead,
                                       bool transposed, uint32_t (&a)[4]) const {
    const int lane = threadIdx.x % 32;
    __syncwarp();  // the tile before has been read
    if (count << chunk_shift < kStepSums) {
      reinterpret_cast<uint4*>(tile)[lane] = uint4{};
      __syncwarp();
    }
    put(tile, ahead.places & 0xffff, ahead.values[0]);
    put(tile, ahead.places >> 16, ahead.values[1]);
    for (int i = lane + 32 * kLaneChunks; i < count; i += 32) {
      const Chunk further = chunk(first, count, i);
      put(tile, further.place, load(further.value));
    }
    __syncwarp();
    // Matrices: rows of the window 0-7, 8-15 of entries 0-7, then of entries 8-15.
    const int low = lane % 8, rows = lane / 8 % 2 * 8, entries = lane / 16 * 8;
    const int place =
        transposed ? (rows + low) * kStepEntries + entries : (entries + low) * kWindowRows + rows;
    const T* const from = tile + (place ^ (place >> 3 & 8));
    if (transposed) {
      load_matrices(from, a);
    } else {
      load_matrices_transposed(from, a);
    }
  }
};

}  // namespace dsr::cuda
