// One launcher per element type, each instantiated in a file of its own so that they build in
// parallel.
#pragma once

#include <algorithm>
#include <string>

#include "cuda/conv/gather.cuh"
#include "cuda/shared_memory.cuh"

namespace dsr::cuda {

inline std::string shapes_of(const Gather& pass) {
  const Slab& s = pass.classes[0].slab;
  return std::to_string(s.images) + " images, " +
         std::to_string(pass.groups * pass.source_channels) + " channels of " +
         std::to_string(s.height) + "x" + std::to_string(s.width) + " to " +
         std::to_string(pass.groups * pass.dest_channels) + " of " + std::to_string(s.rows) + "x" +
         std::to_string(s.cols) + ", " + std::to_string(pass.slab_bytes) + " bytes of slab";
}

// The addresses of a pass; `maps` is null for a plain convolution.
struct GatherArguments {
  const void* source;
  const void* list;
  const int32_t* bounds;
  const float* bias;
  void* dest;
  const GatherMaps* maps;
};

template <class T, int Rows, int Units>
Status launch_gather(Queue queue, const Gather& pass, const GatherArguments& with) {
  const int bytes = kSlabs * pass.slab_bytes;
  const Status enough =
      with.maps == nullptr
          ? allow_shared_bytes<&gather_kernel<T, Rows, Units>>(queue, bytes, "gather")
          : allow_shared_bytes<&fused_gather_kernel<T, Rows, Units>>(queue, bytes, "gather");
  if (!enough.is_ok()) return enough;
  const int row_block = pass.row_warps * Rows;
  const int64_t items = static_cast<int64_t>(pass.tiles) * pass.groups *
                        ((pass.dest_channels + row_block - 1) / row_block);
  if (items > INT32_MAX / 2)
    return Status::error("gather: too many tiles (" + shapes_of(pass) + ")");
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(items, pass.blocks_limit)));
  const auto* source = static_cast<const T*>(with.source);
  const auto* list = static_cast<const int4*>(with.list);
  const auto* bounds = reinterpret_cast<const int2*>(with.bounds);
  auto* dest = static_cast<T*>(with.dest);
  if (with.maps == nullptr) {
    DSR_LAUNCH((gather_kernel<T, Rows, Units>), blocks, dim3(kThreads), bytes, queue.stream, pass,
               static_cast<int>(items), source, list, bounds, with.bias, dest);
  } else {
    DSR_LAUNCH((fused_gather_kernel<T, Rows, Units>), blocks, dim3(kThreads), bytes, queue.stream,
               pass, static_cast<int>(items), *with.maps, source, list, bounds, with.bias, dest);
  }
  return launched("gather", shapes_of(pass));
}

// The kernel of the pass's rows and units: variant kIndex of those there are, or a later one.
template <class T, int kIndex = 0>
Status launch_variant(Queue queue, const Gather& pass, const GatherArguments& with) {
  constexpr auto variants = Variants<sizeof(T)>::gather;
  if constexpr (kIndex == variants.size()) {
    return Status::error("gather: no kernel of " + std::to_string(pass.rows) + " rows and " +
                         std::to_string(pass.units) + " units");
  } else {
    constexpr GatherVariant v = variants[kIndex];
    if (pass.rows == v.rows && pass.units == v.units)
      return launch_gather<T, v.rows, v.units>(queue, pass, with);
    return launch_variant<T, kIndex + 1>(queue, pass, with);
  }
}

// Defined in instances/, for each T.
template <class T>
Status gather_of(Queue queue, const Gather& pass, const GatherArguments& with);

}  // namespace dsr::cuda
