// How the sums of a gather come to memory: as they are, or by way of a DestMap. The kernel's store
// step takes one of these policies; that of plain convolutions has nothing of the other in it.
//
// A Config says which sums a lane has: kRows rows, kRowStep apart, of kUnits positions,
// kPositionStep apart, of kImages images. kLanes lanes have those of a row together, of kPositions
// positions.
#pragma once

#include "cuda/conv/destination.cuh"
#include "cuda/conv/gather.h"
#include "cuda/conv/slab.cuh"

namespace dsr::cuda {

template <class T, int Rows, int Units>
struct GatherConfig {
  static constexpr int kRows = Rows;    // destination channels of a warp
  static constexpr int kUnits = Units;  // positions of a lane
  static constexpr int kVector = Vector<T>::kSize;
  static_assert(kRows * kUnits * kVector <= 32, "sums may take a third of a thread's registers");

  static constexpr int kRowStep = 1, kPositionStep = 32, kImages = kVector;
  static constexpr int kLanes = 32, kPositions = 32 * kUnits;
  static constexpr bool kRuns = false;  // whether a lane's positions may lie side by side in memory
  using Row = dsr::cuda::Row<GatherConfig>;
  using Sums = float[kRows][kUnits][kVector];
  __device__ __forceinline__ static float& sum(Sums& sums, int row, int unit, int image) {
    return sums[row][unit][image];
  }
  // Which of a vector's images a lane has, where there are `count`.
  __device__ __forceinline__ static int first_image() { return 0; }
  __device__ __forceinline__ static int images(int count) { return min(kVector, count); }
};

template <class Config>
using GatherSums = typename Config::Sums;

// An item of work: a tile and a set of destination channels.
struct GatherWork {
  int which, first_position;  // the class, and where in it the tile starts
  int group, first_row;       // of the convolution; the set's first channel in it
  int blocks;                 // of source channels, at least one: zeros are stored too
};

template <class Config, class T>
__device__ __forceinline__ void store_runs(const Gather& pass, const GatherWork& work,
                                           int first_row, int my_position,
                                           const float* __restrict__ bias, T* __restrict__ dest,
                                           GatherSums<Config>& sums) {
  const GatherClass& c = pass.classes[work.which];
  const int64_t channel = work.group * pass.dest_channels + first_row;
  auto row = row_of<Config>(pass, work.which, my_position, channel);
  Stores<Config, T> stores{dest, c.run};
#pragma unroll
  for (int r = 0; r < Config::kRows; ++r) {
    if (first_row + r * Config::kRowStep >= pass.dest_channels) continue;
    const float b = bias == nullptr ? 0.f : bias[channel + r * Config::kRowStep];
    stores.each(row, [&](int u, int n) {
      stores.put(0, u, from_float<T>(Config::sum(sums, r, u, n) + b));
    });
    row.move(Config::kRowStep * pass.dest_strides.c);
  }
}

template <class Config, class T>
__device__ __forceinline__ void store_sums(const Gather& pass, const GatherWork& work,
                                           int first_row, int my_position,
                                           const float* __restrict__ bias, T* __restrict__ dest,
                                           GatherSums<Config>& sums) {
  const GatherClass& c = pass.classes[work.which];
  const int64_t channel = work.group * pass.dest_channels + first_row;
#pragma unroll
  for (int u = 0; u < Config::kUnits; ++u) {
    const Position p = position_at(c.slab, my_position + u * Config::kPositionStep);
    if (!p.valid) continue;
    const auto [to, images] = destination_of<Config>(pass, c, p, channel, dest);
#pragma unroll
    for (int r = 0; r < Config::kRows; ++r) {
      const int row = r * Config::kRowStep;
      if (first_row + row >= pass.dest_channels) continue;
      const float b = bias == nullptr ? 0.f : bias[channel + row];
#pragma unroll
      for (int n = 0; n < Config::kImages; ++n) {
        if (n < images)
          to[row * pass.dest_strides.c + n * pass.dest_strides.n] =
              from_float<T>(Config::sum(sums, r, u, n) + b);
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
                                        int my_position, GatherSums<Config>& sums) const {
    if constexpr (Config::kRuns) {
      store_runs<Config>(pass, work, first_row, my_position, bias, dest, sums);
    } else {
      store_sums<Config>(pass, work, first_row, my_position, bias, dest, sums);
    }
  }
};

// The sum over kLanes lanes side by side, the same bits in each of them.
template <int kLanes, class S>
__device__ __forceinline__ S sum_of_lanes(S x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// Elements that a row's lanes store.
template <class Config>
__device__ __forceinline__ int count_of(const typename Config::Row& row) {
  int mine = 0;
#pragma unroll
  for (int u = 0; u < Config::kUnits; ++u) mine += row.images_of(u);
  return sum_of_lanes<Config::kLanes>(mine);
}

template <class T>
struct MappedStore {
  const DestMap& map;
  const float* bias;
  T* dest;

  template <class Config>
  __device__ __forceinline__ void store(const Gather& pass, const GatherWork& work, int first_row,
                                        int my_position, GatherSums<Config>& sums) const {
    const GatherClass& c = pass.classes[work.which];
    const int channel = work.group * pass.dest_channels + first_row;
    auto row = row_of<Config>(pass, work.which, my_position, channel);
    const int count = map.partial == nullptr ? 0 : count_of<Config>(row);
    const int tile = c.first_tile * (kComputeWarps / pass.row_warps);
    const int part = map.first_part + tile + my_position / Config::kPositions;
#pragma unroll
    for (int r = 0; r < Config::kRows; ++r) {
      const bool exists = first_row + r * Config::kRowStep < pass.dest_channels;
      if constexpr (Config::kLanes == 32) {
        if (!exists) continue;
      } else if (!exists) {
        // Other lanes of the warp may have a row: this one goes with them, and stores nothing.
        row.images = 0;
      }
      const int of_row = exists ? channel + r * Config::kRowStep : 0;
      float2 found;
      if (map.input == nullptr) {
        found = store_output<Config>(row, c.run, of_row, count, r, sums);
      } else {
        found = store_gradient<Config>(row, c.run, of_row, r, sums);
      }
      if (map.partial != nullptr && exists && threadIdx.x % Config::kLanes == 0) {
        const int64_t numbers = int64_t{pass.groups} * pass.dest_channels * map.parts;
        float* const to = map.partial + int64_t{of_row} * map.parts + part;
        to[0] = found.x;
        to[numbers] = found.y;
        if (map.input == nullptr) to[2 * numbers] = count;
      }
      row.move(Config::kRowStep * pass.dest_strides.c);
    }
  }

  __device__ __forceinline__ float added(int64_t offset) const {
    return map.added == nullptr ? 0.f : to_float(static_cast<const T*>(map.added)[offset]);
  }

  // Returns the mean of what the warp stores, and the sum of its squared deviations from it.
  template <class Config>
  __device__ __forceinline__ float2 store_output(const typename Config::Row& row, int run,
                                                 int channel, int count, int r,
                                                 GatherSums<Config>& sums) const {
    const float scale = map.affine.scale == nullptr ? 1.f : map.affine.scale[channel];
    const float b = bias == nullptr ? 0.f : bias[channel];
    const float share = 1.f / max(1, count);
    float mean = 0.f, squares = 0.f;
    Stores<Config, T> stores{dest, run};
    stores.each(row, [&](int u, int n) {
      if (n >= row.images_of(u)) return;
      const int64_t offset = row.at(u) + n * row.image_stride;
      float& sum = Config::sum(sums, r, u, n);
      const float y = sum * scale + b + added(offset);
      const T stored = from_float<T>(map.relu ? relu(y) : y);
      stores.put(offset, u, stored);
      sum = to_float(stored);
      mean += sum * share;  // shares, since a sum may be infinite where no mean is
    });
    if (map.partial == nullptr) return {};
    mean = sum_of_lanes<Config::kLanes>(mean);
#pragma unroll
    for (int u = 0; u < Config::kUnits; ++u) {
#pragma unroll
      for (int n = 0; n < Config::kImages; ++n) {
        const float apart = Config::sum(sums, r, u, n) - mean;
        if (n < row.images_of(u)) squares = fmaf(apart, apart, squares);
      }
    }
    return {mean, sum_of_lanes<Config::kLanes>(squares)};
  }

  // Returns the warp's sums of gz * (x - center) and of gz, after ReLU.
  template <class Config>
  __device__ __forceinline__ float2 store_gradient(const typename Config::Row& row, int run,
                                                   int channel, int r,
                                                   GatherSums<Config>& sums) const {
    const bool has_affine = map.affine.scale != nullptr;
    const float center = has_affine ? map.affine.center[channel] : 0.f;
    const float scale = has_affine ? map.affine.scale[channel] : 1.f;
    const float shift = has_affine ? map.affine.shift[channel] : 0.f;
    float of_scale = 0.f, of_shift = 0.f;
    Stores<Config, T> stores{dest, run};
    stores.each(row, [&](int u, int n) {
      if (n >= row.images_of(u)) return;
      const int64_t offset = row.at(u) + n * row.image_stride;
      const float x = to_float(static_cast<const T*>(map.input)[offset]);
      // As it was in the slab: rounded.
      const float z = to_float(from_float<T>(has_affine ? affine(x, center, scale, shift) : x));
      const float gz = map.relu && z <= 0.f ? 0.f : Config::sum(sums, r, u, n);
      stores.put(offset, u, from_float<T>(gz * scale + added(offset)));
      of_scale = fmaf(gz, x - center, of_scale);
      of_shift += gz;
    });
    if (map.partial == nullptr) return {};
    return {sum_of_lanes<Config::kLanes>(of_scale), sum_of_lanes<Config::kLanes>(of_shift)};
  }
};

}  // namespace dsr::cuda
