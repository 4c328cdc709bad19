// The weights of a step, 16 rows of a window by 16 entries, put together in shared memory.
//
// A step's values come in chunks of 1, 2 or 4 consecutive ones. They are loaded a step ahead.
#pragma once

#include <type_traits>

#include "cuda/conv/vector.cuh"
#include "cuda/conv/window_list.h"
#include "cuda/tensor_core.h"

namespace dsr::cuda {

template <class T>
constexpr int kTileBytes = kStepSums * sizeof(T);
template <class T>
constexpr int kProducts = kStepEntries / kDepth<T>;  // of a step, for 8 columns of sums
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

// A weight as the tile has it: rounded as the instructions take it.
template <class T>
__device__ __forceinline__ T to_weight(float x) {
  return from_float<T>(x);
}
template <>
__device__ __forceinline__ float to_weight<float>(float x) {
  return to_tf32(x);
}

// Where place 16 * line + column of the tile is: what is read at once keeps off each other's banks.
// Of 2-byte elements a line is 32 bytes, in two halves, and halves change places in every other
// four lines: eight lines are read at once. Of floats it is 64 bytes, in four quarters, and eight
// lines are read at once, of a quarter each, or four of two quarters.
template <class T, class Place>
__device__ __forceinline__ Place tile_place(Place place) {
  if constexpr (sizeof(T) == 4) {
    return place ^ (place >> 2 & 8) ^ (place >> 4 & 4);
  } else {
    return place ^ (place >> 3 & 8);
  }
}

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

  template <class T>
  __device__ __forceinline__ void put(T* tile, uint32_t place, const float4& x) const {
    using Four = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    using Two = std::conditional_t<sizeof(T) == 4, uint2, uint32_t>;
    if (place == kNoPlace) return;
    T* const to = tile + tile_place<T>(place);
    const T four[4] = {to_weight<T>(x.x), to_weight<T>(x.y), to_weight<T>(x.z), to_weight<T>(x.w)};
    if (chunk_shift == 2) {
      Four packed;
      memcpy(&packed, four, sizeof(packed));
      *reinterpret_cast<Four*>(to) = packed;
    } else if (chunk_shift == 1) {
      Two packed;
      memcpy(&packed, four, sizeof(packed));
      *reinterpret_cast<Two*>(to) = packed;
    } else {
      *to = four[0];
    }
  }

  // Puts the tile of the pieces from `first` on together, of which `ahead` has the first chunks.
  template <class T>
  __device__ __forceinline__ void put_tile(T* tile, int first, int count,
                                           const ChunkValues& ahead) const {
    const int lane = threadIdx.x % 32;
    __syncwarp();  // the tile before has been read
    if (count << chunk_shift < kStepSums) {
#pragma unroll
      for (int i = 0; i < kTileBytes<T> / 512; ++i)
        reinterpret_cast<uint4*>(tile)[lane + 32 * i] = uint4{};
      __syncwarp();
    }
    put(tile, ahead.places & 0xffff, ahead.values[0]);
    put(tile, ahead.places >> 16, ahead.values[1]);
    for (int i = lane + 32 * kLaneChunks; i < count; i += 32) {
      const Chunk further = chunk(first, count, i);
      put(tile, further.place, load(further.value));
    }
    __syncwarp();
  }
};

// The weights of kDepth entries of the tile, from `first` on, as an instruction takes them.
// `transposed`: the tile has lines of a row's weights, else of an entry's.
template <class T>
__device__ __forceinline__ void load_weights(const T* tile, int first, bool transposed,
                                             uint32_t (&a)[4]) {
  // Matrices: rows of the window 0-7, 8-15 of the first half of the entries, then of the second.
  constexpr int kHalf = kDepth<T> / 2;
  const int lane = threadIdx.x % 32;
  const int low = lane % 8, rows = lane / 8 % 2 * 8, entries = first + lane / 16 * kHalf;
  const int place =
      transposed ? (rows + low) * kStepEntries + entries : (entries + low) * kWindowRows + rows;
  const T* const from = tile + tile_place<T>(place);
  if (transposed) {
    load_matrices(from, a);
  } else if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(from, a);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, entry = first + lane % 4 + i / 2 * kHalf;
      a[i] = __float_as_uint(tile[tile_place<T>(entry * kWindowRows + row)]);
    }
  }
}

}  // namespace dsr::cuda
