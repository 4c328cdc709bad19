// Filling a slab, and finding a position in it. Every kernel that computes on slabs starts here.
#pragma once

#include "cuda/conv/limits.h"
#include "cuda/conv/slab.h"
#include "cuda/conv/source.cuh"
#include "cuda/conv/vector.cuh"

namespace dsr::cuda {

constexpr int kWarps = kComputeWarps + kFillWarps;
constexpr int kThreads = 32 * kWarps;
// 65,536 registers for 640 threads, in steps of 8 per thread: 96 each, one block per
// multiprocessor.
constexpr int kBlocksPerMultiprocessor = 1;

// A destination position, taken apart.
struct Position {
  int group, chunk, row, col;  // col: in the chunk
  bool valid;                  // false past the last position, and in the ragged end of a chunk
};

__device__ __forceinline__ Position position_at(const Slab& s, int position) {
  Position p;
  const uint32_t clamped = min(position, s.positions - 1);
  const uint32_t line = s.by_tile_cols.quotient(clamped);
  const uint32_t image = s.by_rows.quotient(line);
  p.col = clamped - line * s.tile_cols;
  p.row = line - image * s.rows;
  p.group = s.by_chunks.quotient(image);
  p.chunk = image - p.group * s.chunks;
  p.valid = position < s.positions && p.chunk * s.tile_cols + p.col < s.cols;
  return p;
}

// The position after p, of which `position` is the number: without divisions.
__device__ __forceinline__ Position position_after(const Slab& s, Position p, int position) {
  if (++p.col == s.tile_cols) {
    p.col = 0;
    if (++p.row == s.rows) {
      p.row = 0;
      if (++p.chunk == s.chunks) {
        p.chunk = 0;
        ++p.group;
      }
    }
  }
  p.valid = position < s.positions && p.chunk * s.tile_cols + p.col < s.cols;
  return p;
}

// The slab row of a position, counted from the first row of the first image.
__device__ __forceinline__ int slab_row(const Slab& s, const Position& p) {
  return (p.group * s.chunks + p.chunk) * s.image_rows + p.row * s.row_step;
}

// Which slab rows a tile of positions keeps.
struct SlabRows {
  int first, count;
};

__device__ __forceinline__ SlabRows rows_of_tile(const Slab& s, int first_position, int tile) {
  const int last = min(first_position + tile, s.positions) - 1;
  const int first_row = slab_row(s, position_at(s, first_position));
  const int last_row = slab_row(s, position_at(s, last));
  return {first_row, last_row + s.reach_rows + 1 - first_row};
}

// The byte of a tile's slab from which a position's taps are counted.
__device__ __forceinline__ int slab_byte(const Slab& s, const SlabRows& rows, const Position& p) {
  return ((slab_row(s, p) - rows.first) * s.pitch + p.col) * kVectorBytes;
}

// A vector of one channel from memory into a slab: from[0], from[stride], ... of the first `count`
// images, zeros after them. Those are stored: cp.async fills with zeros too, but a margin's address
// may not be mapped.
template <class T>
__device__ __forceinline__ void copy_vector(char* to, const T* from, int64_t stride, int count) {
#pragma unroll
  for (int i = 0; i < Vector<T>::kSize; ++i) {
    if (i < count) {
      copy_async(to + i * sizeof(T), from + i * stride);
    } else {
      *reinterpret_cast<T*>(to + i * sizeof(T)) = T(0.f);
    }
  }
}

// Whether elements go their way while the lane that asked for them goes on: cp.async knows neither
// 2-byte elements nor arithmetic.
template <class T, class Source>
constexpr bool kFillsAsync = sizeof(T) == 4 && !Source::kMapped;

// The vectors of a pixel, which `from` points at in the source, in all of a lane's channels. What
// does not go its way alone passes through registers, a batch of channels at once.
template <class T, class Source>
__device__ __forceinline__ void fill_pixel(char* to, int64_t plane_bytes, const Source& source,
                                           const T* from, const Strides4& strides, int count,
                                           int first_channel, int channel_step, int channels) {
  if constexpr (kFillsAsync<T, Source>) {
    to += first_channel * plane_bytes;
    from += first_channel * strides.c;
#pragma unroll 2
    for (int c = first_channel; c < channels; c += channel_step) {
      copy_vector(to, from, strides.n, count);
      to += channel_step * plane_bytes;
      from += channel_step * strides.c;
    }
  } else {
    constexpr int kBatch = Source::kBatch;
    for (int c = first_channel; c < channels; c += kBatch * channel_step) {
      T images[kBatch][Vector<T>::kSize];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int channel = c + j * channel_step;
        load_images(from + channel * strides.c, strides.n, channel < channels ? count : 0,
                    images[j]);
      }
      if constexpr (Source::kMapped) {
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int channel = c + j * channel_step;
          if (channel < channels)
            source.apply(channel, from + channel * strides.c, strides.n, count, images[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int channel = c + j * channel_step;
        if (channel < channels) store_vector(to + channel * plane_bytes, images[j]);
      }
    }
  }
}

// slab[c][row][column] = the vector of that source pixel in channel c, zeros in the margins; by
// `fill_warps` warps, of which this is number `warp`. Lanes run along columns and rows or, where
// channels are what is contiguous, along channels; the odd plane keeps the stores of the latter off
// each other's banks.
template <class T, class Source>
__device__ __forceinline__ void fill_slab(const Slab& s, const SlabRows& rows,
                                          const Strides4& strides,
                                          const Source& source,  // [N, channels, height, width]
                                          int channels, bool lanes_on_channels, int warp,
                                          char* slab, int fill_warps = kFillWarps) {
  constexpr int kVector = Vector<T>::kSize;
  const int lane = threadIdx.x % 32;
  const int first_pixel = lanes_on_channels ? warp : lane;
  const int pixel_step = lanes_on_channels ? fill_warps : 32;
  const int first_channel = lanes_on_channels ? lane : warp;
  const int channel_step = lanes_on_channels ? 32 : fill_warps;
  const int pixels = rows.count * s.slab_cols;
  for (int pixel = first_pixel; pixel < pixels; pixel += pixel_step) {
    const int row = s.by_slab_cols.quotient(pixel);
    const int col = pixel - row * s.slab_cols;
    const int image = s.by_image_rows.quotient(rows.first + row);
    const int group = s.by_chunks.quotient(image);
    const int chunk = image - group * s.chunks;
    const int h = rows.first + row - image * s.image_rows + s.first_h;
    const int w = chunk * s.tile_cols * s.col_step + col + s.first_w;
    const bool inside = h >= 0 && h < s.height && w >= 0 && w < s.width;
    const int count = inside ? min(kVector, s.images - group * kVector) : 0;
    const int step = s.by_col_step.quotient(col);
    const int place = row * s.pitch + (col - step * s.col_step) * s.phase_cols + step;
    const T* const from = source.at + group * kVector * strides.n + h * strides.h + w * strides.w;
    fill_pixel<T>(slab + place * kVectorBytes, int64_t{kVectorBytes} * s.plane, source, from,
                  strides, count, first_channel, channel_step, channels);
  }
  if constexpr (kFillsAsync<T, Source>) wait_for_copies();
}

}  // namespace dsr::cuda
