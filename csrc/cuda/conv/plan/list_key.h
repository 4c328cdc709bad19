// What the list of a pass depends on besides the pattern.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/conv/plan/layout.h"
#include "cuda/conv/plan/pass_shape.h"

namespace dsr::cuda {

struct ListKey {
  bool transposed;
  int64_t rows;  // O
  int64_t groups;
  int64_t source_channels, dest_channels;  // of one group
  int64_t classes;        // one more than the pass has, for taps that meet no destination pixel
  int64_t channel_block;  // 0 without slabs
  // [KH * KW] each. With slabs, where a tap lies: bytes in a channel's slab, and from channel to
  // channel in the tap's class. Without, the source's row and column of destination (0, 0).
  std::vector<int64_t> tap_class, first, second;

  int64_t blocks() const;  // of source channels
  bool has_unmet_taps() const;
  bool unmet(size_t tap) const { return tap_class[tap] == classes - 1; }
};

ListKey slab_key(const PassShape& shape, int64_t channel_block, const std::vector<Layout>& layouts);
ListKey direct_key(const PassShape& shape);

}  // namespace dsr::cuda
