// How the sums of a gather come to memory: as they are, or by way of a DestMap. The kernel's store
// step takes one of these policies; that of plain convolutions has nothing of the other in it.
#pragma once

#include "cuda/conv/gather.h"
#include "cuda/conv/slab.cuh"

namespace dsr::cuda {

template <class T, int Rows, int Units>
struct GatherConfig {
  static constexpr int kRows = Rows;    // destination channels of a warp
  static constexpr int kUnits = Units;  // positions of a lane
  static constexpr int kVector = Vector<T>::kSize;
  static_assert(kRows * kUnits * kVector <= 32, "sums may take a third of a thread's registers");
};

template <class Config>
using GatherSums = float[Config::kRows][Config::kUnits][Config::kVector];

// An item of work: a tile and a set of destination channels.
struct GatherWork {
  int which, first_position;  // the class, and where in it the tile starts
  int group, first_row;       // of the convolution; the set's first channel in it
  int blocks;                 // of source channels, at least one: zeros are stored too
};

// Where the destination has a position of a channel, counted from `dest`, a pointer or an index,
// and how many of the vector's images there are.
template <class At>
struct Destination {
  At at;
  int images;
};

template <int kVector, class At>
__device__ __forceinline__ Destination<At> destination_of(const Gather& pass, const GatherClass& c,
                                                          const Position& p, int64_t channel,
                                                          At dest) {
  const int h = c.dest_h + p.row * pass.dest_step_h;
  const int w = c.dest_w + (p.chunk * c.slab.tile_cols + p.col) * pass.dest_step_w;
  const int images = min(kVector, c.slab.images - p.group * kVector);
  const Strides4& strides = pass.dest_strides;
  dest = dest + p.group * kVector * strides.n + channel * strides.c + h * strides.h + w * strides.w;
  return {dest, images};
}

template <class Config, class T>
__device__ __forceinline__ void store_sums(const Gather& pass, const GatherWork& work,
                                           int first_row, int my_position,
                                           const float* __restrict__ bias, T* __restrict__ dest,
                                           const GatherSums<Config>& sums) {
  const GatherClass& c = pass.classes[work.which];
  const int64_t channel = work.group * pass.dest_channels + first_row;
#pragma unroll
  for (int u = 0; u < Config::kUnits; ++u) {
    const Position p = position_at(c.slab, my_position + u * 32);
    if (!p.valid) continue;
    const auto [to, images] = destination_of<Config::kVector>(pass, c, p, channel, dest);
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

template <class T>
struct PlainStore {
  const float* bias;  // [channels] or null
  T* dest;            // [N, channels, ...]

  template <class Config>
  __device__ __forceinline__ void store(const Gather& pass, const GatherWork& work, int first_row,
                                        int my_position, const GatherSums<Config>& sums) const {
    store_sums<Config>(pass, work, first_row, my_position, bias, dest, sums);
  }
};

// The sum over a warp, the same bits in each of its lanes.
template <class S>
__device__ __forceinline__ S warp_sum(S x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

template <class T>
struct MappedStore {
  const DestMap& map;
  const float* bias;
  T* dest;

  // What a warp stores of one channel, and what it leaves of it in its part.
  template <class Config>
  struct Row {
    int64_t at[Config::kUnits];  // elements from where the channel begins
    int images[Config::kUnits];
    int64_t image_stride;
  };

  template <class Config>
  __device__ __forceinline__ void store(const Gather& pass, const GatherWork& work, int first_row,
                                        int my_position, GatherSums<Config>& sums) const {
    const GatherClass& c = pass.classes[work.which];
    const int channel = work.group * pass.dest_channels + first_row;
    Row<Config> row;
    row.image_stride = pass.dest_strides.n;
    int mine = 0;
#pragma unroll
    for (int u = 0; u < Config::kUnits; ++u) {
      const Position p = position_at(c.slab, my_position + u * 32);
      const auto d = destination_of<Config::kVector>(pass, c, p, channel, int64_t{0});
      row.at[u] = d.at;
      row.images[u] = p.valid ? d.images : 0;
      mine += row.images[u];
    }
    const int count = map.partial == nullptr ? 0 : warp_sum(mine);
    const int tile = c.first_tile * (kComputeWarps / pass.row_warps);
    const int part = map.first_part + tile + my_position / (32 * Config::kUnits);
    const int64_t numbers = int64_t{pass.groups} * pass.dest_channels * map.parts;
#pragma unroll
    for (int r = 0; r < Config::kRows; ++r) {
      if (first_row + r >= pass.dest_channels) continue;
      float2 found;
      if (map.input == nullptr) {
        found = store_output<Config>(row, channel + r, count, sums[r]);
      } else {
        found = store_gradient<Config>(row, channel + r, sums[r]);
      }
      if (map.partial != nullptr && threadIdx.x % 32 == 0) {
        float* const to = map.partial + int64_t{channel + r} * map.parts + part;
        to[0] = found.x;
        to[numbers] = found.y;
        if (map.input == nullptr) to[2 * numbers] = count;
      }
#pragma unroll
      for (int u = 0; u < Config::kUnits; ++u) row.at[u] += pass.dest_strides.c;
    }
  }

  __device__ __forceinline__ float added(int64_t offset) const {
    return map.added == nullptr ? 0.f : to_float(static_cast<const T*>(map.added)[offset]);
  }

  // Returns the mean of what the warp stores, and the sum of its squared deviations from it.
  template <class Config>
  __device__ __forceinline__ float2
  store_output(const Row<Config>& row, int channel, int count,
               float (&sums)[Config::kUnits][Config::kVector]) const {
    const float scale = map.affine.scale == nullptr ? 1.f : map.affine.scale[channel];
    const float b = bias == nullptr ? 0.f : bias[channel];
    const float share = 1.f / max(1, count);
    float mean = 0.f, squares = 0.f;
#pragma unroll
    for (int u = 0; u < Config::kUnits; ++u) {
#pragma unroll
      for (int n = 0; n < Config::kVector; ++n) {
        if (n >= row.images[u]) continue;
        const int64_t offset = row.at[u] + n * row.image_stride;
        const float y = sums[u][n] * scale + b + added(offset);
        const T stored = from_float<T>(map.relu ? relu(y) : y);
        dest[offset] = stored;
        sums[u][n] = to_float(stored);
        mean += sums[u][n] * share;  // shares, since a sum may be infinite where no mean is
      }
    }
    if (map.partial == nullptr) return {};
    mean = warp_sum(mean);
#pragma unroll
    for (int u = 0; u < Config::kUnits; ++u) {
#pragma unroll
      for (int n = 0; n < Config::kVector; ++n) {
        const float apart = sums[u][n] - mean;
        if (n < row.images[u]) squares = fmaf(apart, apart, squares);
      }
    }
    return {mean, warp_sum(squares)};
  }

  // Returns the warp's sums of gz * (x - center) and of gz, after ReLU.
  template <class Config>
  __device__ __forceinline__ float2
  store_gradient(const Row<Config>& row, int channel,
                 const float (&sums)[Config::kUnits][Config::kVector]) const {
    const bool has_affine = map.affine.scale != nullptr;
    const float center = has_affine ? map.affine.center[channel] : 0.f;
    const float scale = has_affine ? map.affine.scale[channel] : 1.f;
    const float shift = has_affine ? map.affine.shift[channel] : 0.f;
    float of_scale = 0.f, of_shift = 0.f;
#pragma unroll
    for (int u = 0; u < Config::kUnits; ++u) {
#pragma unroll
      for (int n = 0; n < Config::kVector; ++n) {
        if (n >= row.images[u]) continue;
        const int64_t offset = row.at[u] + n * row.image_stride;
        const float x = to_float(static_cast<const T*>(map.input)[offset]);
        // As it was in the slab: rounded.
        const float z = to_float(from_float<T>(has_affine ? affine(x, center, scale, shift) : x));
        const float gz = map.relu && z <= 0.f ? 0.f : sums[u][n];
        dest[offset] = from_float<T>(gz * scale + added(offset));
        of_scale = fmaf(gz, x - center, of_scale);
        of_shift += gz;
      }
    }
    if (map.partial == nullptr) return {};
    return {warp_sum(of_scale), warp_sum(of_shift)};
  }
};

}  // namespace dsr::cuda
